//! Commands that the block list forbids.

use qga_compliance::check_with;

#[test]
fn refused() {
    check_with("refused", &["-b", "guest-ping,guest-file-open,guest-sync-delimited-not,guest-exec"]);
}
