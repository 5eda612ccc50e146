//! Which agents a command is for: what the command line names, what `QGA_TARGET` names, or the only one there is.

use std::collections::HashSet;
use std::path::Path;

use qga_client::{Discovery, Error, Found, Target};

use crate::exit_code::Code;
use crate::failure::{Failure, Result};
use crate::output::text::printable;

/// The targets of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    pub targets: Vec<Target>,
    /// Whether there may be any number of them: output is then told apart by target, even if there is one.
    pub is_open: bool,
}

impl Selection {
    fn one(target: Target) -> Self {
        Self { targets: vec![target], is_open: false }
    }

    /// The target of a command that takes a single one.
    pub fn only(&self, command: &str) -> Result<&Target> {
        match self.targets.as_slice() {
            [target] => Ok(target),
            several => Err(Failure::told(
                Code::Usage,
                format!("{command} is for one target, and {} were named", several.len()),
                "Name one of them with --target.",
            )),
        }
    }
}

/// Chooses the targets: those that are named, all that are found, or the only one that is found.
pub fn select(named: &[String], all: bool) -> Result<Selection> {
    if all {
        let discovery = qga_client::search();
        if discovery.found.is_empty() {
            return Err(nothing_found(&discovery));
        }
        return Ok(Selection { targets: targets_of(discovery.found), is_open: true });
    }
    let from_environment = || std::env::var("QGA_TARGET").ok().filter(|text| !text.is_empty());
    let named = if named.is_empty() { from_environment().into_iter().collect() } else { named.to_vec() };
    if named.is_empty() {
        return only_one(&qga_client::search());
    }
    let mut selection = Selection { targets: Vec::new(), is_open: named.len() > 1 };
    for text in &named {
        let expanded = expand(text)?;
        selection.is_open |= expanded.is_open;
        selection.targets.extend(expanded.targets);
    }
    let mut seen = HashSet::new();
    selection.targets.retain(|target| seen.insert(target.clone()));
    Ok(selection)
}

fn only_one(discovery: &Discovery) -> Result<Selection> {
    match discovery.found.as_slice() {
        [] => Err(nothing_found(discovery)),
        [found] => Ok(Selection::one(found.target.clone())),
        several => {
            let names: Vec<String> = several.iter().map(|found| found.target.to_string()).collect();
            Err(Failure::told(
                Code::Usage,
                format!("there are {} agents here, and none was named: {}", names.len(), in_short(&names)),
                "Name one with --target (or QGA_TARGET), several with a pattern or a list, all with --all.",
            ))
        }
    }
}

fn nothing_found(discovery: &Discovery) -> Failure {
    let mut text = "no agent was found on this host".to_owned();
    for problem in &discovery.problems {
        text = format!("{text}; {problem}");
    }
    Failure::told(
        Code::NoSuchThing,
        text,
        "Name one with --target: a socket's path, libvirt:DOMAIN, pve:VMID, vsock:CID[:PORT], hybrid:PATH:PORT or \
         serial:DEVICE. 'qga doctor' looks for the reason.",
    )
}

/// A few of many names.
fn in_short(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let rest = names.len().saturating_sub(SHOWN);
    let shown = names[..names.len().min(SHOWN)].join(", ");
    if rest == 0 { shown } else { format!("{shown} and {rest} more") }
}

fn targets_of(found: Vec<Found>) -> Vec<Target> {
    found.into_iter().map(|found| found.target).collect()
}

/// A target, a list of them with commas, or a pattern.
fn expand(text: &str) -> Result<Selection> {
    if let Some(parts) = list(text) {
        let mut targets = Vec::new();
        for part in parts {
            targets.extend(expand(part)?.targets);
        }
        return Ok(Selection { targets, is_open: true });
    }
    if is_pattern(text) {
        let targets = like(text)?;
        if targets.is_empty() {
            return Err(Failure::told(
                Code::NoSuchThing,
                format!("no agent matches {text:?}"),
                "'qga targets' lists those that are found.",
            ));
        }
        return Ok(Selection { targets, is_open: true });
    }
    let target: Target = text.parse()?;
    Ok(Selection::one(target))
}

/// The parts of a list. A comma may be part of a path as well: it is a list if each part is a target.
fn list(text: &str) -> Option<Vec<&str>> {
    let parts: Vec<&str> = text.split(',').collect();
    // Behind a whole path a bare name is a part of it sooner than a socket in this directory.
    let is_part = |part: &&str| parts[0].starts_with('/') && !part.contains(['/', ':']);
    let is_target = |part: &&str| !is_part(part) && (is_pattern(part) || part.parse::<Target>().is_ok());
    let is_list = parts.len() > 1 && parts.iter().all(is_target);
    is_list.then_some(parts)
}

fn is_pattern(text: &str) -> bool {
    // The URI may have a question mark of its own.
    let name = match text.strip_prefix("libvirt+") {
        Some(rest) => rest.rsplit_once(':').map_or("", |(_, domain)| domain),
        None => text,
    };
    name.contains(['*', '?']) && !path_of(text).is_some_and(|path| Path::new(path).exists())
}

fn path_of(text: &str) -> Option<&str> {
    let path = text.strip_prefix("unix:").unwrap_or(text);
    (path.len() < text.len() || text.starts_with(['/', '.']) || matches!(text.parse(), Ok(Target::Unix(_))))
        .then_some(path)
}

fn like(pattern: &str) -> Result<Vec<Target>> {
    if let Some(path) = path_of(pattern) {
        let paths = glob::glob(path).map_err(|error| {
            let problem = error.to_string();
            Failure::from(Error::Target { text: pattern.to_owned(), problem })
        })?;
        return Ok(paths.flatten().map(Target::Unix).collect());
    }
    let found = match pattern.strip_prefix("libvirt") {
        Some(rest) => {
            let uri = rest.strip_prefix('+').and_then(|rest| rest.rsplit_once(':')).map(|(uri, _)| uri);
            qga_client::search_libvirt(uri)?
        }
        None => qga_client::search().found,
    };
    Ok(targets_of(found).into_iter().filter(|target| target.matches(pattern)).collect())
}

/// Names to tell targets apart by, for people: the machine's name where that is clear, else the whole target.
pub fn short_names(targets: &[Target]) -> Vec<String> {
    let short: Vec<String> = targets.iter().map(|target| printable(&short_name(target))).collect();
    let distinct: HashSet<&String> = short.iter().collect();
    let whole = || targets.iter().map(|target| printable(&target.to_string())).collect();
    if distinct.len() == short.len() { short } else { whole() }
}

fn short_name(target: &Target) -> String {
    match target {
        Target::Libvirt { domain, .. } => domain.clone(),
        Target::Unix(path) => path.file_stem().map_or_else(|| target.to_string(), |name| name.to_string_lossy().into()),
        _ => target.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(target: &str) -> Found {
        Found { target: target.parse().unwrap(), description: String::new() }
    }

    fn discovery(targets: &[&str]) -> Discovery {
        Discovery { found: targets.iter().map(|target| found(target)).collect(), problems: Vec::new() }
    }

    #[test]
    fn the_only_agent_need_not_be_named() {
        let chosen = only_one(&discovery(&["libvirt:web"])).unwrap();
        assert_eq!(chosen, Selection::one("libvirt:web".parse().unwrap()));
        let several = only_one(&discovery(&["libvirt:web", "libvirt:db"])).unwrap_err();
        assert_eq!(several.exit_code(), 64);
        assert!(several.text().unwrap().contains("libvirt:web, libvirt:db"), "{several:?}");
        assert_eq!(only_one(&discovery(&[])).unwrap_err().exit_code(), 66);
    }

    #[test]
    fn a_list_is_a_list_only_of_targets() {
        assert_eq!(list("/run/a,/run/b"), Some(vec!["/run/a", "/run/b"]));
        assert_eq!(list("libvirt:web-*,pve:1"), Some(vec!["libvirt:web-*", "pve:1"]));
        assert_eq!(list("/run/a,b.sock"), None);
        assert_eq!(list("web-1.sock,web-2.sock"), Some(vec!["web-1.sock", "web-2.sock"]));
        let chosen = select(&["/run/a,/run/b".to_owned(), "/run/a".to_owned()], false).unwrap();
        assert_eq!(chosen.targets.len(), 2, "{chosen:?}");
        assert!(chosen.is_open);
    }

    #[test]
    fn a_pattern_of_paths_finds_files() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.sock", "b.sock", "c.txt"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let pattern = format!("{}/*.sock", folder.path().display());
        let chosen = select(&[pattern], false).unwrap();
        assert_eq!(short_names(&chosen.targets), ["a", "b"]);
        let none = select(&[format!("{}/*.none", folder.path().display())], false).unwrap_err();
        assert_eq!(none.exit_code(), 66);
    }

    #[test]
    fn the_question_mark_of_a_uri_is_no_pattern() {
        assert!(!is_pattern("libvirt+qemu+ssh://host/system?socket=/run/x:web"));
        assert!(is_pattern("libvirt+qemu+ssh://host/system?socket=/run/x:web-?"));
        assert!(is_pattern("pve:10*"));
    }

    #[test]
    fn names_that_are_not_distinct_are_whole() {
        let targets = ["/run/1/agent.sock".parse().unwrap(), "/run/2/agent.sock".parse().unwrap()];
        assert_eq!(short_names(&targets), ["/run/1/agent.sock", "/run/2/agent.sock"]);
    }
}
