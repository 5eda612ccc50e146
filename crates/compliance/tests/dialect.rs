//! The JSON that is accepted, and the names of all that is not.

use qga_compliance::check;

#[test]
fn dialect() {
    check("dialect");
}
