//! Depth, tokens, sizes.

use qga_compliance::check;

#[test]
fn limits() {
    check("limits");
}
