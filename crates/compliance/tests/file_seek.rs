//! Positions, flushing, closing.

use qga_compliance::check;

#[test]
fn file_seek() {
    check("file_seek");
}
