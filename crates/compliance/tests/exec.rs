//! Starting programs and learning how they ended.

use qga_compliance::check;

#[test]
fn exec() {
    check("exec");
}
