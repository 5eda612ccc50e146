//! Arguments that are missing, too many, or of the wrong kind.

use qga_compliance::check;

#[test]
fn arguments() {
    check("arguments");
}
