use super::super::super::target_state::Sleep;
use super::super::staged::Staged;
use super::{choices, sleep};
use std::time::Duration;

const SHOW: &str = "systemctl show -p ActiveState -p Result -p ExecMainStartTimestampMonotonic";
const SHOW_MASKS: &str = "systemctl show -p LoadState";
const SLEPT: &str = "ActiveState=inactive\nResult=success\nExecMainStartTimestampMonotonic=0\n";

/// A machine that can sleep in every way by its kernel.
fn capable(answers: &[(&'static str, i32, &'static str)]) -> Staged {
    let staged = Staged::new(answers);
    staged.put("/sys/power/state", "freeze mem disk\n");
    staged.put("/sys/power/mem_sleep", "s2idle [deep]\n");
    staged.put("/sys/power/disk", "[platform] shutdown reboot suspend test_resume\n");
    staged.put("/sys/power/resume", "254:2\n");
    staged.put("/proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n/dev/vda2 partition 1048572 0 -2\n");
    staged
}

fn with_systemd(answers: &[(&'static str, i32, &'static str)]) -> Staged {
    let staged = capable(answers);
    staged.put("/run/systemd/system/x", "");
    staged.put("/bin/systemctl", "");
    staged
}

fn error(staged: &Staged, how: Sleep) -> String {
    sleep(staged, how).unwrap_err().desc
}

/// What was done, without the looks at units.
fn done(staged: &Staged) -> Vec<String> {
    staged.done().into_iter().filter(|act| ![SHOW, SHOW_MASKS].iter().any(|show| act.starts_with(show))).collect()
}

#[test]
fn lists_of_the_kernel_have_one_choice_in_brackets() {
    assert_eq!(choices("s2idle [deep]"), (vec!["s2idle", "deep"], Some("deep")));
    assert_eq!(choices("freeze mem"), (vec!["freeze", "mem"], None));
    assert_eq!(choices(""), (vec![], None));
}

#[test]
fn what_the_kernel_does_not_offer_is_not_tried() {
    let check = |state: Option<&str>, mem_sleep: Option<&str>, how, why: &str| {
        let staged = with_systemd(&[]);
        std::fs::remove_dir_all(staged.root.path("/sys/power")).unwrap();
        for (name, text) in [("state", state), ("mem_sleep", mem_sleep)] {
            if let Some(text) = text {
                staged.put(&format!("/sys/power/{name}"), text);
            }
        }
        assert_eq!(error(&staged, how), format!("the requested suspend mode is not supported by the guest: {why}"));
        assert_eq!(staged.done(), [""; 0]);
    };
    check(None, None, Sleep::Disk, "the kernel has no /sys/power/state");
    check(Some("freeze mem"), None, Sleep::Disk, "/sys/power/state does not offer 'disk'");
    check(Some("freeze disk"), None, Sleep::Ram, "/sys/power/state does not offer 'mem'");
    check(Some("freeze mem"), Some("[deep]"), Sleep::Hybrid, "/sys/power/state does not offer 'disk'");
    let no_deep = "/sys/power/mem_sleep does not offer 'deep', and the host cannot end another sleep";
    check(Some("freeze mem disk"), Some("[s2idle]"), Sleep::Ram, no_deep);
    check(Some("freeze mem disk"), Some("[s2idle] shallow"), Sleep::Hybrid, no_deep);
}

#[test]
fn systemd_is_asked_first() {
    for (how, verb) in [(Sleep::Disk, "hibernate"), (Sleep::Ram, "suspend"), (Sleep::Hybrid, "hybrid-sleep")] {
        let staged = with_systemd(&[(SHOW, 0, SLEPT)]);
        sleep(&staged, how).unwrap();
        assert_eq!(done(&staged), [format!("systemctl {verb}")]);
    }
}

#[test]
fn a_unit_that_failed_before_is_no_failure_now() {
    let failed = "ActiveState=failed\nResult=exit-code\nExecMainStartTimestampMonotonic=7\n";
    let staged = with_systemd(&[(SHOW, 0, failed)]);
    staged.asleep.set(Duration::from_secs(1));
    sleep(&staged, Sleep::Ram).unwrap();
    assert_eq!(done(&staged), ["systemctl suspend"]);
}

#[test]
fn when_systemd_fails_the_others_are_tried_and_the_error_tells_all() {
    let refusal = "Call to Hibernate failed: not enough swap space";
    let staged = with_systemd(&[("systemctl hibernate", 1, refusal), ("disk >", 16, ""), ("pm-is", 1, "")]);
    staged.put("/usr/sbin/pm-hibernate", "");
    staged.put("/usr/bin/pm-is-supported", "");
    assert_eq!(
        error(&staged, Sleep::Disk),
        format!(
            "failed to suspend to disk: systemctl hibernate: exit status 1: {refusal}; pm-is-supported --hibernate: \
             exit status 1; 'disk' to /sys/power/state: Device or resource busy"
        )
    );
    assert_eq!(done(&staged), ["systemctl hibernate", "pm-is-supported --hibernate", "disk > /sys/power/state"]);
}

#[test]
fn what_somebody_has_switched_off_is_not_done_in_another_way() {
    for refusal in ["Call to Suspend failed: Unit suspend.target is masked.", "active block inhibitors"] {
        let staged = with_systemd(&[("systemctl suspend", 1, refusal)]);
        let told = error(&staged, Sleep::Ram);
        assert_eq!(told, format!("failed to suspend to memory: systemctl suspend: exit status 1: {refusal}"));
        assert_eq!(done(&staged), ["systemctl suspend"]);
    }
}

#[test]
fn a_masked_target_is_not_circumvented() {
    let masks = "LoadState=masked\n\nLoadState=loaded\n\nLoadState=loaded\n";
    let staged = with_systemd(&[(SHOW_MASKS, 0, masks)]);
    let expected = "failed to suspend to memory: systemctl suspend: suspend.target, sleep.target or \
                    systemd-suspend.service is masked";
    assert_eq!(error(&staged, Sleep::Ram), expected);
    assert_eq!(staged.done(), ["systemctl show -p LoadState suspend.target sleep.target systemd-suspend.service"]);
}

#[test]
fn pm_utils_are_used_where_they_say_that_they_can() {
    let staged = capable(&[]);
    staged.put("/usr/bin/pm-is-supported", "");
    staged.put("/usr/sbin/pm-suspend-hybrid", "");
    sleep(&staged, Sleep::Hybrid).unwrap();
    assert_eq!(staged.done(), ["pm-is-supported --suspend-hybrid", "pm-suspend-hybrid "]);
}

#[test]
fn the_kernel_alone_is_enough_and_its_choices_are_restored() {
    let check = |how, expected: &[&str]| {
        let staged = capable(&[]);
        sleep(&staged, how).unwrap();
        assert_eq!(staged.done(), expected);
    };
    check(Sleep::Ram, &["mem > /sys/power/state"]);
    check(Sleep::Disk, &["disk > /sys/power/state"]);
    let hybrid = ["suspend > /sys/power/disk", "disk > /sys/power/state", "platform > /sys/power/disk"];
    check(Sleep::Hybrid, &hybrid);

    let staged = capable(&[]);
    staged.put("/sys/power/mem_sleep", "[s2idle] deep\n");
    sleep(&staged, Sleep::Ram).unwrap();
    let expected = ["deep > /sys/power/mem_sleep", "mem > /sys/power/state", "s2idle > /sys/power/mem_sleep"];
    assert_eq!(staged.done(), expected);
}

#[test]
fn memory_is_not_written_to_a_disk_from_which_nothing_goes_on() {
    let staged = with_systemd(&[(SHOW, 0, SLEPT)]);
    staged.put("/sys/power/resume", "0:0\n");
    staged.put("/proc/cmdline", "quiet noresume root=/dev/vda1\n");
    let told = error(&staged, Sleep::Disk);
    assert!(told.ends_with("says from which device it would go on"), "{told}");
    assert_eq!(staged.done(), [""; 0]);
    staged.put("/proc/cmdline", "quiet resume=/dev/vda2\n");
    sleep(&staged, Sleep::Disk).unwrap();
    assert_eq!(done(&staged), ["systemctl hibernate"]);
}

#[test]
fn compressed_memory_is_no_place_for_memory() {
    let staged = capable(&[]);
    staged.put("/proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n/dev/zram0 partition 1 0 100\n");
    for how in [Sleep::Disk, Sleep::Hybrid] {
        let told = error(&staged, how);
        assert!(told.ends_with("; /sys/power/state: there is no swap space on a disk"), "{told}");
    }
    assert_eq!(staged.done(), [""; 0]);
}
