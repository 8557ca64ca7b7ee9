//! Running other programs: by argument list, never through a shell, and saying what to do when one fails.

use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::process::{Command, Output, Stdio};

/// The cargo that started us, so that both use one toolchain. What it told us of this package is taken away: build scripts
/// that look at it would be run again each time the two ways of calling cargo take turns, and half the tree be built anew.
pub fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let ours = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(ours) {
            cargo.env_remove(name);
        }
    }
    cargo
}

/// The command as one would type it.
pub fn shown(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        let argument = argument.to_string_lossy();
        let plain = !argument.is_empty() && !argument.contains(|c: char| c.is_whitespace() || "'\"$;|&<>*".contains(c));
        // Writing to a String can't fail.
        let _ = if plain { write!(line, " {argument}") } else { write!(line, " '{argument}'") };
    }
    line
}

/// Runs to the end with our own input and output. `remedy` is what a person should do when it fails.
pub fn passed(command: &mut Command, remedy: &str) -> Result<()> {
    let status = command.status().with_context(|| format!("can't run `{}`: {remedy}", shown(command)))?;
    if !status.success() {
        bail!("`{}` failed ({status}): {remedy}", shown(command));
    }
    Ok(())
}

/// Runs to the end and gives what it printed, whatever its exit status.
pub fn output(command: &mut Command) -> Result<Output> {
    command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("can't run `{}`: is it installed and on the PATH?", shown(command)))
}

/// What a successful command printed, or an error with what it complained of.
pub fn stdout(command: &mut Command, remedy: &str) -> Result<String> {
    let output = output(command)?;
    if !output.status.success() {
        bail!(
            "`{}` failed ({}): {remedy}\n{}",
            shown(command),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether a program of this name can be started.
pub fn available(program: &str, argument: &str) -> bool {
    Command::new(program)
        .arg(OsStr::new(argument))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_one_would_type_it() {
        let mut command = Command::new("apt-get");
        command.args(["install", "-y", "a b", ""]);
        assert_eq!(shown(&command), "apt-get install -y 'a b' ''");
    }

    #[test]
    fn a_failing_command_says_what_to_do() {
        let error = passed(&mut Command::new("false"), "do the other thing").unwrap_err().to_string();
        assert!(error.contains("do the other thing"), "{error}");
        let error = passed(&mut Command::new("/nonexistent/x"), "install x").unwrap_err().to_string();
        assert!(error.contains("install x"), "{error}");
    }
}
