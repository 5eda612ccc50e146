//! Reading files and what is no file.

use qga_compliance::check;

#[test]
fn file_read() {
    check("file_read");
}
