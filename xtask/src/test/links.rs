//! Checks that each relative link of the documents leads to a file, and each anchor to a heading.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Folders with other people's text, or none.
const LEFT_OUT: &[&str] = &["target", ".git", "corpus", "artifacts"];

/// The number of links checked, and a line for each that leads nowhere.
pub fn check(root: &Path) -> Result<(usize, Vec<String>)> {
    let mut documents = Vec::new();
    find_documents(root, &mut documents)?;
    documents.sort();
    let mut checked = 0;
    let mut broken = Vec::new();
    for document in &documents {
        let text = fs::read_to_string(document).with_context(|| format!("cannot read {}", document.display()))?;
        for (line_number, target) in links(&text) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            checked += 1;
            if let Some(problem) = problem(root, document, &text, &target) {
                let name = document.strip_prefix(root).unwrap_or(document).display();
                broken.push(format!("{name}:{line_number}: {target}: {problem}"));
            }
        }
    }
    Ok((checked, broken))
}

fn find_documents(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot list {}", folder.display()))?;
        let (name, path) = (entry.file_name().to_string_lossy().into_owned(), entry.path());
        let kind = entry.file_type().with_context(|| format!("cannot ask what {} is", path.display()))?;
        if kind.is_dir() && !LEFT_OUT.contains(&name.as_str()) {
            find_documents(&path, found)?;
        } else if kind.is_file() && path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
    Ok(())
}

fn problem(root: &Path, document: &Path, text: &str, target: &str) -> Option<&'static str> {
    let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
    let folder = document.parent().unwrap_or(root);
    let file = match path {
        "" => document.to_owned(),
        path if path.starts_with('/') => root.join(path.trim_start_matches('/')),
        path => folder.join(path),
    };
    if !file.exists() {
        return Some("no such file");
    }
    if anchor.is_empty() || file.extension().is_none_or(|extension| extension != "md") {
        return None;
    }
    let other = if path.is_empty() { text.to_owned() } else { fs::read_to_string(&file).unwrap_or_default() };
    if anchors(&other).iter().any(|known| known == anchor) { None } else { Some("no such heading") }
}

/// The links of a document, with their line: `[text](target)`, `![text](target)`, `[name]: target`, `src="target"`.
/// Code has none.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (index, line) in prose(text) {
        let mut push = |target: &str| {
            let target = target.trim().trim_matches(['<', '>']).split(' ').next().unwrap_or_default();
            if !target.is_empty() {
                found.push((index + 1, target.to_owned()));
            }
        };
        // What stands between backticks is code.
        let prose: String = line.split('`').step_by(2).collect::<Vec<_>>().join("`");
        for (start, _) in prose.match_indices("](") {
            if let Some(end) = prose[start + 2..].find(')') {
                push(&prose[start + 2..start + 2 + end]);
            }
        }
        for attribute in ["src=\"", "srcset=\"", "href=\""] {
            for (start, _) in prose.match_indices(attribute) {
                let rest = &prose[start + attribute.len()..];
                push(&rest[..rest.find('"').unwrap_or(0)]);
            }
        }
        if prose.starts_with('[')
            && let Some((_, target)) = prose.split_once("]: ")
        {
            push(target);
        }
    }
    found
}

/// The lines outside code blocks, with their index.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut in_code = false;
    text.lines().enumerate().filter(move |(_, line)| {
        let fence = line.trim_start().starts_with("```");
        in_code ^= fence;
        !in_code && !fence
    })
}

/// The anchors of a document's headings, as code hosts make them.
fn anchors(text: &str) -> Vec<String> {
    let headings = prose(text).filter_map(|(_, line)| {
        let title = line.trim_start_matches('#');
        (title.len() < line.len() && title.starts_with(' ')).then(|| title.trim())
    });
    headings
        .map(|title| {
            let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_that_lead_nowhere_are_named_with_their_line() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path();
        fs::create_dir_all(root.join("docs")).expect("a folder");
        fs::write(root.join("docs/two.md"), "# A title, with `code`\n").expect("a file");
        let text = "# One\n[a](docs/two.md) [b](docs/three.md)\n![c](<docs/two.md>) `[d](none)`\n```\n[e](none)\n```\n\
                    [f](docs/two.md#a-title-with-code) [g](docs/two.md#none) [h](#one)\n<img src=\"none.svg\">\n\
                    [ref]: https://example.org/x\n[ref2]: gone.md\n";
        fs::write(root.join("one.md"), text).expect("a file");
        let (checked, broken) = check(root).expect("readable");
        assert_eq!(checked, 8);
        assert_eq!(
            broken,
            [
                "one.md:2: docs/three.md: no such file",
                "one.md:7: docs/two.md#none: no such heading",
                "one.md:8: none.svg: no such file",
                "one.md:10: gone.md: no such file",
            ]
        );
    }
}
