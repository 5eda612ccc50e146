//! The same command for one target or for many at once.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use qga_client::Target;

use crate::exit_code::Code;
use crate::failure::{Failure, Result};
use crate::general_options::General;
use crate::output::{BAD, GOOD, Page, styled};
use crate::target::{Selection, short_names};
use crate::visit::Visit;

/// What is done for each target.
pub type Act<'a> = &'a (dyn Fn(&mut Visit<'_>) -> Result<()> + Sync);

/// Does it for all targets, several at a time, and sums up how it went.
pub fn visit(selection: &Selection, general: &General, act: Act<'_>) -> Result<()> {
    match selection.targets.as_slice() {
        [target] if !selection.is_open => {
            let page = Page::new(target.to_string(), None, general.json);
            act(&mut Visit { target, general, page })
        }
        targets => visit_many(targets, general, act),
    }
}

fn visit_many(targets: &[Target], general: &General, act: Act<'_>) -> Result<()> {
    let names = short_names(targets);
    let widest = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    let results: Vec<Mutex<Option<Result<()>>>> = targets.iter().map(|_| Mutex::new(None)).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(target) = targets.get(index) else { break };
            let page = Page::new(target.to_string(), Some(format!("{:widest$}", names[index])), general.json);
            let mut visit = Visit { target, general, page };
            let result = act(&mut visit);
            // Whoever reads no output reads no summary of it either.
            let finished = visit.page.finish().map_err(|error| Failure::host("write the output", &error));
            let result = result.and(finished);
            if let (true, Err(failure)) = (general.json, &result)
                && failure.text().is_some()
            {
                visit.page.json_failure(failure);
            }
            *results[index].lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
        }
    };
    thread::scope(|scope| {
        for _ in 0..general.jobs.min(targets.len()) {
            scope.spawn(work);
        }
    });
    let results: Vec<Option<Result<()>>> =
        results.into_iter().map(|result| result.into_inner().unwrap_or_else(PoisonError::into_inner)).collect();
    sum_up(&names, &results, general)
}

fn sum_up(names: &[String], results: &[Option<Result<()>>], general: &General) -> Result<()> {
    let failed: Vec<(&String, &Failure)> = names
        .iter()
        .zip(results)
        .filter_map(|(name, result)| result.as_ref()?.as_ref().err().map(|failure| (name, failure)))
        .collect();
    let lost = results.iter().filter(|result| result.is_none()).count();
    let is_shown = !general.json && (!failed.is_empty() || io::stderr().is_terminal());
    if is_shown {
        let succeeded = names.len() - failed.len() - lost;
        let mut text = format!("{} targets: {}", names.len(), styled(GOOD, format!("{succeeded} done")));
        if !failed.is_empty() {
            text.push_str(&format!(", {}", styled(BAD, format!("{} failed", failed.len()))));
        }
        let mut stderr = anstream::stderr().lock();
        let _ = writeln!(stderr, "{text}");
        for (name, failure) in &failed {
            let text = failure.text().unwrap_or_else(|| format!("exit code {}", failure.exit_code()));
            let _ = writeln!(stderr, "  {name}: {text}");
        }
    }
    match common_code(&failed.iter().map(|(_, failure)| failure.exit_code()).collect::<Vec<_>>()) {
        None if lost == 0 => Ok(()),
        None => Err(Failure::Silent(Code::Failed.number())),
        Some(code) => Err(Failure::Silent(code)),
    }
}

/// The code that all failures share, or the one that says that they differ.
pub fn common_code(codes: &[u8]) -> Option<u8> {
    let first = *codes.first()?;
    Some(if codes.iter().all(|&code| code == first) { first } else { Code::Failed.number() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_that_differ_have_a_code_of_their_own() {
        assert_eq!(common_code(&[]), None);
        assert_eq!(common_code(&[69, 69]), Some(69));
        assert_eq!(common_code(&[69, 75]), Some(1));
    }
}
