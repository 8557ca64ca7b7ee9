//! Asking before what can't be taken back. Only a person at a terminal is asked.

use super::Failure;
use std::io::{BufRead, IsTerminal, Write};

/// Asks on a terminal. Without one nobody can answer: `--yes` has to stand on the command line.
pub fn confirm(what: &str, yes: bool) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err(Failure::Usage(format!("{what}\nThis is not done unasked: repeat it with --yes")));
    }
    ask(what)
}

/// Asks on a terminal before something is removed; scripts are believed.
pub fn confirm_removal(what: &str, yes: bool) -> Result<(), Failure> {
    if yes || !std::io::stdin().is_terminal() {
        return Ok(());
    }
    ask(&format!("{what} will be removed."))
}

fn ask(what: &str) -> Result<(), Failure> {
    eprint!("{what}\nGo on? [y/N] ");
    let failed = |source| Failure::File { path: "standard input".to_owned(), what: "read", source };
    std::io::stderr().flush().map_err(failed)?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).map_err(failed)?;
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Failure::Usage("nothing was changed".to_owned())),
    }
}
