//! What runs in the guest in front of a program: shell scripts for any POSIX shell (dash, bash and `BusyBox` are tested).
//!
//! The outer script opens the files that the program's output goes to, starts what feeds it, and becomes the program. It
//! is started under a random name. A shell puts its name in front of what it complains of, so an output that begins with
//! that name comes from the script, and the program was never started: an exit code could be the program's own. What goes
//! wrong before the files are open is said on the script's own output, which the agent keeps, in the same way.

use crate::conversation::random_number;
use crate::program::{Account, Program, Terminal};

/// What the script says on its own output when a directory takes no file.
pub(super) const NO_FILE: &str = "no file";

/// What the script says on its own output when nothing in the guest makes a terminal.
pub(super) const NO_TERMINAL: &str = "no terminal";

/// Opens $1.out and $1.err. With `set -C` a file or link that somebody put there is refused. The umask comes from the
/// kernel where it tells it: `$(umask)` would start a process. The variables have names that the program's
/// environment has not: a change of one of those would reach the program.
const OPENING: &str = r#"qga_b=$1; qga_y=; qga_t=; shift
while read -r qga_k qga_m; do [ "$qga_k" != Umask: ] || break; done </proc/self/status
[ -n "$qga_m" ] || qga_m=$(umask)
umask 077; set -C
command exec 3>"$qga_b.out" && command exec 4>"$qga_b.err" || { echo "$0: no file"; exit 73; }
"#;

/// Finds out what makes a terminal: `script` of util-linux, which passes an exit code on, or of `BusyBox`, or Python.
const TERMINAL: &str = r#"if command -v script >/dev/null 2>&1; then
qga_y="script -q"
! SHELL=/bin/sh script -q -e -c true /dev/null </dev/null >/dev/null 2>&1 || qga_y="script -q -e"
else for qga_k in python3 python; do
command -v "$qga_k" >/dev/null 2>&1 && { qga_y=$qga_k; break; }
done; fi
[ -n "$qga_y" ] || { echo "$0: no terminal"; exit 73; }
"#;

/// Feeds the program. Input goes through the file $1.in and a FIFO, since an agent's write to a FIFO may be lost when it is
/// full: the host writes a piece, says "data" in the file $1.ctl, and writes the next one when the first has been taken, which
/// is when the file is empty again. So no input stands in a file for longer than the program takes to read it. The
/// feeding process holds both files open and goes on without their names where the system has `/proc`; with "open" the
/// host says that it does not need the names any more either.
///
/// The host says something every few seconds. When it has been silent for `QGA_SILENCE` rounds it is gone: the program is
/// ended, and nothing is left behind. A round lasts at least a twentieth of a second.
///
/// A program may end before a slow host has opened its output: the names stay until the host says that it has, removes
/// them itself, or is gone. A program that has ended is sent no signal, since its number may be another's by then.
///
/// The feeding process is nobody's child: a program that waits for its children must not find one that it has not started.
const FEEDING: &str = r#": >"$qga_b.in" && : >"$qga_b.ctl" && : >"$qga_b.tty" && mkfifo "$qga_b.fifo" || { echo "$0: no file"; exit 73; }
[ -z "$qga_y" ] || exec 8>|"$qga_b.tty"
( {
trap '' HUP INT TERM
exec 3>&- 4>&- 5>"$qga_b.fifo" 6<"$qga_b.ctl" 7<"$qga_b.in" 8<"$qga_b.tty"
qga_f=/proc/self/fd/7; [ -e "$qga_f" ] || qga_f=
qga_n=0; qga_p=; qga_l=; qga_k=; qga_d=; qga_o=; qga_g=
qga_sweep() { rm -f "$qga_b.out" "$qga_b.err" "$qga_b.in" "$qga_b.ctl" "$qga_b.tty" "$qga_b.fifo"; }
while [ -z "$qga_g" ] && kill -0 $$ || { qga_g=1; [ -z "$qga_o" ] && [ -e "$qga_b.out" ]; }; do
while read -r qga_k <&6; do
qga_k=$qga_l$qga_k; qga_l=; qga_n=0
case $qga_k in
open) qga_o=1; [ -z "$qga_f" ] || qga_sweep ;;
data*) [ "$qga_k" != "$qga_d" ] || continue
qga_d=$qga_k
[ -z "$qga_p" ] || wait "$qga_p"
{ cat "${qga_f:-$qga_b.in}" >&5; : >|"${qga_f:-$qga_b.in}"; } & qga_p=$! ;;
size*) [ -n "$qga_t" ] || read -r qga_t <&8
[ -z "$qga_t" ] || stty ${qga_k#size} <"$qga_t" ;;
end) exec 5>&-; [ -z "$qga_p" ] || wait "$qga_p"; qga_sweep; exit ;;
esac
qga_k=
done
qga_l=$qga_l$qga_k
qga_n=$((qga_n + 1))
if [ "$qga_n" -gt QGA_SILENCE ]; then
qga_sweep
[ -z "$qga_g" ] || exit
kill -TERM -$$ || kill -TERM $$
sleep 5
kill -KILL -$$ || kill -KILL $$
exit
fi
sleep 0.05 || { sleep 1; qga_n=$((qga_n + 19)); }
done
qga_sweep
} </dev/null >/dev/null 2>&1 & )
exec <"$qga_b.fifo"; rm -f "$qga_b.fifo"
"#;

/// Becomes the program.
const BECOMING: &str = r#"umask "$qga_m"; set +C
exec >&3 2>&4 3>&- 4>&-
"#;

/// Becomes a program on a terminal of its own, $1 being a line for the shell there. The terminal's name is told to what
/// feeds it through descriptor 8.
const BECOMING_ON_A_TERMINAL: &str = r#"qga_shell=${SHELL-}; SHELL=/bin/sh; qga_tty=/proc/$$/fd/8; export qga_shell SHELL qga_tty
case $qga_y in
script*) exec $qga_y -c "$1" /dev/null ;;
*) exec $qga_y -c 'import os, pty, sys
s = pty.spawn(["/bin/sh", "-c", sys.argv[1]])
s = os.wait()[1] if s is None else s
sys.exit(os.WEXITSTATUS(s) if os.WIFEXITED(s) else 128 + os.WTERMSIG(s))' "$1" ;;
esac"#;

/// On the new terminal, before the program.
const ON_THE_TERMINAL: &str = r#"tty >"$qga_tty" 2>/dev/null; exec 8>&-
SHELL=$qga_shell; [ -n "$SHELL" ] || unset SHELL; unset qga_tty qga_shell
"#;

/// Changes to the directory $1.
const DIRECTORY: &str = r#"cd -- "$1" 2>/dev/null || {
if [ ! -e "$1" ]; then qga_k="there is no directory $1"; elif [ ! -d "$1" ]; then qga_k="$1 is no directory"
else qga_k="the directory $1 cannot be entered"; fi
echo "$0: qga: $qga_k" >&2; exit 126; }
shift
"#;

/// Becomes the user $1, the agent's own if it is empty: name or number, out of the guest's user database. $2 are names of
/// variables that are left as they are. $3 has the words "home" where the user's directory is wanted, "shell" where the
/// program is the user's shell, and "profile" where that is to start as a login does.
const ACCOUNT: &str = r#"qga_u=$1; qga_e=" $2 "; qga_o=$3; shift 3
qga_r=$(id -u); qga_a=$qga_u; qga_u=${qga_u:-$qga_r}
qga_find() {
while IFS=: read -r qga_n qga_p qga_x qga_y qga_g qga_h qga_s || [ -n "$qga_n" ]; do
case $1 in name) [ "$qga_n" = "$qga_u" ] ;; number) [ "$qga_x" = "$qga_u" ] ;; *) [ -n "$qga_x" ] ;; esac && return 0
done
return 1; }
qga_find name </etc/passwd || { qga_l=$(getent passwd "$qga_u" 2>/dev/null) && qga_find any <<QGA
$qga_l
QGA
} || qga_find number </etc/passwd || {
[ -z "$qga_a" ] || { echo "$0: qga: there is no user $qga_a" >&2; exit 126; }
qga_n=$qga_r; qga_x=$qga_r; qga_h=/; qga_s=; }
qga_s=${qga_s:-/bin/sh}
for qga_k in HOME USER LOGNAME SHELL; do
case $qga_e in *" $qga_k "*) continue ;; esac
case $qga_k in HOME) HOME=$qga_h ;; USER) USER=$qga_n ;; LOGNAME) LOGNAME=$qga_n ;; SHELL) SHELL=$qga_s ;; esac
export "$qga_k"
done
case $qga_o in *home*) cd -- "$HOME" 2>/dev/null || cd / ;; esac
case $qga_o in
*profile*) case ${qga_s##*/} in sh|ash|dash|bash|ksh|mksh|zsh|fish|csh|tcsh) set -- -l "$@" ;; esac ;;
esac
case $qga_o in *shell*) set -- "$qga_s" "$@" ;; esac
if [ "$qga_x" != "$qga_r" ]; then
if setpriv --reuid "$qga_x" --regid "$qga_y" --init-groups true 2>/dev/null; then
set -- setpriv --reuid "$qga_x" --regid "$qga_y" --init-groups -- /bin/sh -c 'exec "$@"' "$0" "$@"
else set -- su -p -s /bin/sh -- "$qga_n" -c 'exec "$@"' "$0" "$@"; fi
fi
"#;

const EXEC: &str = r#"exec "$@""#;

/// The random name of a run.
pub(super) fn name() -> String {
    format!("qga-{:016x}{:016x}", random_number(), random_number())
}

/// The outer script and its arguments, for a shell that is started with `-c`.
pub(super) fn outer(name: &str, base: &str, program: &Program, silence_rounds: Option<u64>) -> Vec<String> {
    let mut script = OPENING.to_owned();
    if program.terminal.is_some() {
        script.push_str(TERMINAL);
    }
    if let Some(rounds) = silence_rounds {
        script.push_str(&FEEDING.replace("QGA_SILENCE", &rounds.to_string()));
    }
    script.push_str(BECOMING);
    let (inner, words) = inner(program);
    let mut arguments = vec!["-c".to_owned(), String::new(), name.to_owned(), base.to_owned()];
    if let Some(terminal) = &program.terminal {
        script.push_str(BECOMING_ON_A_TERMINAL);
        let inner = format!("{}{ON_THE_TERMINAL}{inner}", terminal.set_up());
        let mut line = format!("exec /bin/sh -c {} {}", quoted(&inner), quoted(name));
        for word in &words {
            line.push(' ');
            line.push_str(&quoted(word));
        }
        arguments.push(line);
    } else {
        script.push_str(&inner);
        arguments.extend(words);
    }
    arguments[1] = script;
    arguments
}

/// The program as the agent is to start it without the outer script: as it is, or behind a shell that changes to its
/// directory and its user.
pub(super) fn plain(name: &str, program: &Program) -> Program {
    if program.directory.is_none() && program.account.is_none() {
        return program.clone();
    }
    let (script, words) = inner(program);
    let mut arguments = vec!["-c".to_owned(), script, name.to_owned()];
    arguments.extend(words);
    Program { path: "/bin/sh".to_owned(), arguments, directory: None, account: None, ..program.clone() }
}

/// What changes to a program's directory and user and becomes the program, and its words.
fn inner(program: &Program) -> (String, Vec<String>) {
    let (mut script, mut words) = (String::new(), Vec::new());
    if let Some(directory) = &program.directory {
        script.push_str(DIRECTORY);
        words.push(directory.clone());
    }
    if let Some(Account { name, kept_variables, login }) = &program.account {
        script.push_str(ACCOUNT);
        let is_shell = program.path.is_empty();
        let mode = [
            (*login && program.directory.is_none(), "home"),
            (is_shell, "shell"),
            (is_shell && *login && program.terminal.is_some(), "profile"),
        ];
        let mode: Vec<&str> = mode.into_iter().filter_map(|(holds, word)| holds.then_some(word)).collect();
        words.extend([name.clone(), kept_variables.join(" "), mode.join(" ")]);
    }
    script.push_str(EXEC);
    if !program.path.is_empty() {
        words.push(program.path.clone());
    }
    words.extend(program.arguments.iter().cloned());
    (script, words)
}

impl Terminal {
    fn set_up(&self) -> String {
        let (rows, columns) = (self.rows, self.columns);
        format!("stty rows {rows} cols {columns} 2>/dev/null; TERM={}; export TERM\n", quoted(&self.kind))
    }
}

/// The text as one word for a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::{Command, Stdio};

    use super::*;

    /// The shells of this machine that guests have as `/bin/sh`.
    fn shells() -> Vec<&'static [&'static str]> {
        let known: [&[&str]; 4] = [&["sh"], &["dash"], &["bash", "--posix"], &["busybox", "sh"]];
        let (there, missing): (Vec<_>, Vec<_>) = known.into_iter().partition(|words| {
            let tried = Command::new(words[0]).args(&words[1..]).args(["-c", "exit 7"]).stderr(Stdio::null()).status();
            tried.is_ok_and(|status| status.code() == Some(7))
        });
        if !missing.is_empty() {
            eprintln!("not here, so not tried: {missing:?}");
        }
        there
    }

    #[test]
    fn every_shell_starts_feeds_and_refuses_alike() {
        let directory = tempfile::tempdir().unwrap();
        for (index, words) in shells().into_iter().enumerate() {
            let base = directory.path().join(index.to_string()).display().to_string();
            let start = |program: &Program, rounds| {
                let mut command = Command::new(words[0]);
                command.args(&words[1..]).args(outer("qga-name", &base, program, rounds));
                command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
            };
            let read = |name: &str| fs::read_to_string(format!("{base}.{name}")).unwrap();
            let clear = || ["out", "err"].map(|name| fs::remove_file(format!("{base}.{name}")).unwrap());

            let arguments = ["-c".to_owned(), "cat; echo wrong >&2; exit 5".to_owned()].into();
            let program = Program { path: "sh".to_owned(), arguments, ..Program::default() };
            let mut child = start(&program, Some(100_000));
            // The file is empty again when the program has the piece.
            for piece in ["one\n", "two\n"] {
                while !fs::exists(format!("{base}.ctl")).unwrap() {}
                fs::write(format!("{base}.in"), piece).unwrap();
                let said = format!("{}data {piece}", read("ctl"));
                fs::write(format!("{base}.ctl"), said).unwrap();
                while !read("in").is_empty() {
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
            }
            fs::write(format!("{base}.ctl"), format!("{}end\n", read("ctl"))).unwrap();
            assert_eq!(child.wait().unwrap().code(), Some(5), "{words:?}");
            while fs::exists(format!("{base}.out")).unwrap() {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }

            let refused = Program { path: "no-such-program".to_owned(), ..Program::default() };
            assert_eq!(start(&refused, None).wait().unwrap().code(), Some(127), "{words:?}");
            assert!(read("err").starts_with("qga-name: "), "{words:?}: {}", read("err"));
            // The names are there, so this run gets none.
            let output = start(&program, None).wait_with_output().unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout), "qga-name: no file\n", "{words:?}");
            clear();

            let account = Some(Account { kept_variables: vec!["USER".to_owned()], ..Account::default() });
            let arguments =
                ["-c".to_owned(), "echo $USER; pwd; echo $1".to_owned(), "sh".to_owned(), "it's".to_owned()];
            let (path, directory) = ("sh".to_owned(), Some("/usr".to_owned()));
            let program = Program { path, arguments: arguments.into(), account, directory, ..Program::default() };
            let mut command = Command::new(words[0]);
            command.args(&words[1..]).args(outer("qga-name", &base, &program, None)).env("USER", "kept");
            assert!(command.status().unwrap().success(), "{words:?}: {}", read("err"));
            assert_eq!(read("out"), "kept\n/usr\nit's\n", "{words:?}: {}", read("err"));
            clear();
        }
    }

    #[test]
    fn the_files_of_a_program_that_has_ended_stay_until_its_host_has_them_or_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let program = Program { path: "true".to_owned(), ..Program::default() };
        for (index, words) in shells().into_iter().enumerate() {
            for (rounds, word) in [(100_000, "open\n"), (100_000, "end\n"), (20, "")] {
                let base = directory.path().join(format!("{index}.{}", word.trim())).display().to_string();
                let mut command = Command::new(words[0]);
                command.args(&words[1..]).args(outer("qga-name", &base, &program, Some(rounds)));
                let status = command.stdin(Stdio::null()).status().unwrap();
                assert!(status.success(), "{words:?}");
                if !word.is_empty() {
                    std::thread::sleep(std::time::Duration::from_millis(300));
                    assert!(fs::exists(format!("{base}.out")).unwrap(), "{words:?}");
                    fs::write(format!("{base}.ctl"), word).unwrap();
                }
                while ["out", "err", "in", "ctl", "tty"].iter().any(|end| fs::exists(format!("{base}.{end}")).unwrap())
                {
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
            }
        }
    }
}
