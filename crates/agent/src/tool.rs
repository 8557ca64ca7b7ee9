//! Runs the host's own programs: argument lists, never a shell, never longer than allowed.

use std::ffi::OsStr;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    #[error("can't run {program}: install the Debian package {package}")]
    Missing {
        program: String,
        package: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("`{line}` did not end within {} ms", wait_max.as_millis())]
    Timeout { line: String, wait_max: Duration },
    #[error("`{line}` failed: {stderr}")]
    Failed { line: String, stderr: String },
}

/// A program of the host and where it comes from.
#[derive(Debug, Clone, Copy)]
pub struct Tool<'a> {
    /// By name, searched in `PATH`, or by path.
    pub program: &'a str,
    pub package: &'static str,
    pub wait_max: Duration,
}

impl Tool<'_> {
    /// Runs it to its end and gives its output. On failure the error has what it said.
    pub async fn run<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<Vec<u8>, ToolError> {
        self.run_with(arguments, "").await
    }

    /// The same, with something to read.
    pub async fn run_with<S: AsRef<OsStr>>(&self, arguments: &[S], input: &str) -> Result<Vec<u8>, ToolError> {
        let line = || {
            let words = arguments.iter().map(|word| word.as_ref().to_string_lossy());
            std::iter::once(self.program.into()).chain(words).collect::<Vec<_>>().join(" ")
        };
        let missing = |source| ToolError::Missing { program: self.program.to_owned(), package: self.package, source };
        let mut child = Command::new(self.program)
            .args(arguments)
            .stdin(if input.is_empty() { Stdio::null() } else { Stdio::piped() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(missing)?;
        let stdin = child.stdin.take();
        let work = async {
            let feed = async {
                if let Some(mut stdin) = stdin {
                    // One that stops reading says why at its end.
                    let _ = stdin.write_all(input.as_bytes()).await;
                }
            };
            let (output, ()) = tokio::join!(child.wait_with_output(), feed);
            output
        };
        let output = tokio::time::timeout(self.wait_max, work)
            .await
            .map_err(|_| ToolError::Timeout { line: line(), wait_max: self.wait_max })?
            .map_err(missing)?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(ToolError::Failed { line: line(), stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned() })
    }
}
