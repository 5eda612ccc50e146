//! Runs cases: in several guests at once, each with the next case that nobody has taken.
//!
//! A guest waits more than it computes, so there is one more of them than the host has processors. A case that fails is
//! tried once more in a guest that is new: a busy host, which emulates every processor, can fail a case that holds. What
//! passes only then is counted as passed and named in the summary, for somebody to look into.

use super::Skipped;
use super::cases::Case;
use crate::style;
use anyhow::{Context as _, Result, anyhow};
use std::collections::VecDeque;
use std::fmt;
use std::iter;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How the cases ended.
#[derive(Debug, Default)]
pub struct Report {
    /// Number of cases that passed.
    pub passed: usize,
    /// Names of those that passed at the second try only.
    pub unstable: Vec<String>,
    /// Names of the cases that failed.
    pub failed: Vec<String>,
    /// Names of the cases that could not run, and why.
    pub skipped: Vec<(String, String)>,
    /// Names of the cases that were not begun, because the time was over.
    pub not_run: Vec<String>,
}

/// Where cases run: what the runner wants of it before, between and after them.
pub trait Place: Sized {
    /// A new one, with this agent in it.
    fn start(our_agent: &Path) -> Result<Self>;
    /// Undoes what the case left.
    fn clear_away(&mut self) -> Result<()>;
    /// What can be told after a failure.
    fn evidence(&mut self) -> String;
    /// What the case had to say.
    fn take_notes(&mut self) -> Vec<String>;
}

/// The cases that nobody has taken yet, and how the others ended.
pub struct Work<'a, P> {
    our_agent: &'a Path,
    /// No case is begun after this.
    deadline: Option<Instant>,
    waiting: Mutex<VecDeque<&'a Case<P>>>,
    /// Why there can be no place, once that is known.
    no_place: OnceLock<NoPlace>,
}

/// Why no case can run.
enum NoPlace {
    /// This host cannot have one.
    Impossible(String),
    /// It does not start, though it should.
    Broken,
}

impl<'a, P: Place> Work<'a, P> {
    /// These cases, in this order.
    pub fn new(cases: Vec<&'a Case<P>>, our_agent: &'a Path, deadline: Option<Instant>) -> Self {
        Self { our_agent, deadline, waiting: Mutex::new(cases.into()), no_place: OnceLock::new() }
    }

    /// How a case ends that cannot begin any more.
    fn why_not(&self) -> Option<Ending> {
        let is_late = self.deadline.is_some_and(|deadline| Instant::now() >= deadline);
        match self.no_place.get() {
            Some(NoPlace::Impossible(reason)) => Some(Ending::Skipped(reason.clone())),
            Some(NoPlace::Broken) => Some(Ending::Failed),
            None => is_late.then_some(Ending::NotRun),
        }
    }

    fn take(&self) -> Option<&'a Case<P>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    /// Runs cases until none is left; returns the place where the last one ran. Several threads may do so.
    pub fn run(&self, report: &Mutex<Report>) -> Option<P> {
        let mut place = None;
        while let Some(case) = self.take() {
            let ending = match self.why_not() {
                Some(ending) => {
                    print(case.name, &ending.to_string(), &mut place);
                    ending
                }
                None => self.run_case(case, &mut place),
            };
            report.lock().unwrap_or_else(PoisonError::into_inner).add(case.name, ending);
        }
        place
    }

    fn run_case(&self, case: &Case<P>, place: &mut Option<P>) -> Ending {
        for is_last_try in [false, true] {
            let started = Instant::now();
            let result = self.attempt(case, place, is_last_try);
            let time = style::duration(started.elapsed());
            let error = match result {
                Ok(()) => {
                    print(case.name, &format!("{} ({time})", style::good("ok")), place);
                    return if is_last_try { Ending::PassedAtLast } else { Ending::Passed };
                }
                Err(error) => error,
            };
            match error.downcast::<Skipped>() {
                // What failed once and then cannot run has failed.
                Ok(Skipped(reason)) if !is_last_try => {
                    let ending = Ending::Skipped(reason);
                    print(case.name, &ending.to_string(), place);
                    return ending;
                }
                error => {
                    let error = error.map_or_else(|error| format!("{error:#}"), |Skipped(reason)| reason);
                    let evidence = place.as_mut().map_or_else(String::new, Place::evidence);
                    let word = if is_last_try { "FAILED" } else { "FAILED, tried once more" };
                    print(case.name, &format!("{} ({time})\n{error}\n{evidence}", style::bad(word)), place);
                    // What it left cannot be trusted.
                    *place = None;
                }
            }
        }
        Ending::Failed
    }

    fn attempt(&self, case: &Case<P>, place: &mut Option<P>, is_last_try: bool) -> Result<()> {
        let here = match place {
            Some(place) => place,
            None => place.insert(self.start(is_last_try)?),
        };
        // A case that panics has failed; the others go on.
        let guarded = catch_unwind(AssertUnwindSafe(|| (case.run)(here)));
        let result = guarded.unwrap_or_else(|_| Err(anyhow!("it panicked; what it said stands above")));
        let cleared = here.clear_away().context("clearing away");
        if cleared.is_err() && result.as_ref().is_err_and(anyhow::Error::is::<Skipped>) {
            *place = None;
        }
        result.and(cleared)
    }

    fn start(&self, is_last_try: bool) -> Result<P> {
        P::start(self.our_agent).inspect_err(|error| {
            let reason = match error.downcast_ref() {
                Some(Skipped(reason)) if !is_last_try => NoPlace::Impossible(reason.clone()),
                // Twice in a row: it would not start for the other cases either, and each try takes minutes.
                _ if is_last_try => NoPlace::Broken,
                _ => return,
            };
            // Another guest may have found out at the same time.
            let _ = self.no_place.set(reason);
        })
    }
}

/// How one case ended.
enum Ending {
    Passed,
    PassedAtLast,
    Failed,
    Skipped(String),
    NotRun,
}

impl fmt::Display for Ending {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed | Self::PassedAtLast => formatter.write_str(&style::good("ok")),
            Self::Failed => write!(formatter, "{}: there is no guest to run it in", style::bad("FAILED")),
            Self::Skipped(reason) => write!(formatter, "{}: {reason}", style::warning("skipped")),
            Self::NotRun => write!(formatter, "{}: the time for all tests is over", style::warning("not run")),
        }
    }
}

impl Report {
    fn add(&mut self, name: &str, ending: Ending) {
        match ending {
            Ending::Passed => self.passed += 1,
            Ending::PassedAtLast => {
                self.passed += 1;
                self.unstable.push(name.to_owned());
            }
            Ending::Failed => self.failed.push(name.to_owned()),
            Ending::Skipped(reason) => self.skipped.push((name.to_owned(), reason)),
            Ending::NotRun => self.not_run.push(name.to_owned()),
        }
    }

    /// Prints the numbers and the names that matter.
    pub fn print(&self, time: Duration) {
        let (failed, skipped) = (self.failed.len(), self.skipped.len());
        println!("{} passed, {failed} failed, {skipped} skipped in {}", self.passed, style::duration(time));
        let lists = [
            ("failed", &self.failed),
            ("passed only at the second try", &self.unstable),
            ("not run, because the time was over; first in the next run", &self.not_run),
        ];
        for (what, names) in lists {
            if !names.is_empty() {
                println!("{what}: {}", names.join(", "));
            }
        }
    }
}

/// One piece of output a case, whoever else prints.
fn print<P: Place>(name: &str, ending: &str, place: &mut Option<P>) {
    let notes = place.as_mut().map(Place::take_notes).unwrap_or_default();
    let lines = iter::once(format!("{name} ... {ending}"));
    let lines: Vec<String> = lines.chain(notes.iter().map(|note| format!("    {}", style::faint(note)))).collect();
    println!("{}", lines.join("\n"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::bail;
    use std::cell::Cell;
    use std::sync::atomic::{AtomicUsize, Ordering};

    thread_local! {
        /// How many there have been in this test.
        static PLACES: Cell<usize> = const { Cell::new(0) };
    }

    /// Its number: the first one is broken. Some never start.
    struct Fake<const STARTS: bool = true>(usize);

    impl<const STARTS: bool> Place for Fake<STARTS> {
        fn start(_our_agent: &Path) -> Result<Self> {
            let number = PLACES.replace(PLACES.get() + 1);
            if STARTS { Ok(Self(number)) } else { bail!("it does not come up") }
        }
        fn clear_away(&mut self) -> Result<()> {
            Ok(())
        }
        fn evidence(&mut self) -> String {
            String::new()
        }
        fn take_notes(&mut self) -> Vec<String> {
            Vec::new()
        }
    }

    const CASES: [Case<Fake>; 4] = [
        Case { name: "holds on a good host", run: |place| if place.0 > 0 { Ok(()) } else { bail!("broken") } },
        Case { name: "holds", run: |_| Ok(()) },
        Case { name: "does not hold", run: |_| bail!("never") },
        Case { name: "cannot be asked", run: |_| Err(Skipped::because("no such device")) },
    ];

    fn run_all<P: Place>(cases: &[Case<P>], deadline: Option<Instant>) -> Report {
        let report = Mutex::default();
        Work::new(cases.iter().collect(), Path::new("agent"), deadline).run(&report);
        report.into_inner().expect("nobody panicked")
    }

    fn run(deadline: Option<Instant>) -> Report {
        run_all(&CASES, deadline)
    }

    #[test]
    fn what_does_not_start_twice_is_not_started_for_each_case() {
        let cases = ["one", "two", "three"].map(|name| Case { name, run: |_: &mut Fake<false>| Ok(()) });
        let report = run_all(&cases, None);
        assert_eq!(report.failed, ["one", "two", "three"]);
        assert_eq!(PLACES.get(), 2);
    }

    #[test]
    fn what_panics_has_failed_and_the_others_go_on() {
        let cases = [
            Case { name: "panics", run: |_: &mut Fake| panic!("as it should") },
            Case { name: "holds", run: |_: &mut Fake| Ok(()) },
        ];
        let report = run_all(&cases, None);
        assert_eq!((report.passed, report.failed), (1, vec!["panics".to_owned()]));
    }

    #[test]
    fn what_failed_once_and_then_cannot_run_has_failed() {
        static TRIES: AtomicUsize = AtomicUsize::new(0);
        let fickle = Case {
            name: "fickle",
            run: |_: &mut Fake| match TRIES.fetch_add(1, Ordering::Relaxed) {
                0 => bail!("broken"),
                _ => Err(Skipped::because("no such device")),
            },
        };
        assert_eq!(run_all(&[fickle], None).failed, ["fickle"]);
    }

    #[test]
    fn a_failed_case_gets_one_more_try_in_a_new_place_and_is_named() {
        let Report { passed, unstable, failed, skipped, not_run } = run(None);
        assert_eq!((passed, unstable, failed), (2, vec!["holds on a good host".into()], vec!["does not hold".into()]));
        assert_eq!(skipped, [("cannot be asked".into(), "no such device".into())]);
        assert_eq!(not_run, [""; 0]);
        // The broken one, the one after it, the one for the second try of what never holds, the one after that.
        assert_eq!(PLACES.get(), 4);
    }

    #[test]
    fn after_the_deadline_no_case_is_begun_and_each_is_named() {
        let report = run(Some(Instant::now()));
        assert_eq!((report.passed, report.skipped.len(), report.not_run.len()), (0, 0, CASES.len()));
    }
}
