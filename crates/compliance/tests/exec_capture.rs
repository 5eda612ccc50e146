//! What goes into a program and what comes out.

use qga_compliance::check;

#[test]
fn exec_capture() {
    check("exec_capture");
}

#[test]
fn exec_one_stream() {
    check("exec_one_stream");
}
