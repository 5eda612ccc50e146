//! The members of a request and the id.

use qga_compliance::check;

#[test]
fn envelope() {
    check("envelope");
}
