//! Writing files, and base64.

use qga_compliance::check;

#[test]
fn file_write() {
    check("file_write");
}
