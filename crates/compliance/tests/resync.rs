//! The reset byte, and what an error leaves behind.

use qga_compliance::check;

#[test]
fn resync() {
    check("resync");
}
