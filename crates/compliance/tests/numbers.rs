//! Numbers, and how they come back.

use qga_compliance::check;

#[test]
fn numbers() {
    check("numbers");
}
