//! How long and how much, in one place. Waits are bounds, not expectations: a machine with two busy
//! cores must stay below them.

use std::time::Duration;

/// Between two looks at something that has no event.
pub const POLL: Duration = Duration::from_millis(50);
/// One call of `ip`.
pub const IP_WAIT_MAX: Duration = Duration::from_secs(20);
/// The server answers its API after being started.
pub const SERVER_READY_WAIT_MAX: Duration = Duration::from_secs(60);
/// All agents have joined and reported.
pub const HOSTS_UP_WAIT_MAX: Duration = Duration::from_secs(60);
/// A guest answers after being created, with all of them booting at once.
pub const GUESTS_UP_WAIT_MAX: Duration = Duration::from_secs(180);
/// A started program shows in the process table.
pub const START_WAIT_MAX: Duration = Duration::from_secs(5);
/// A program ends after SIGTERM; then it is killed.
pub const TERMINATE_WAIT_MAX: Duration = Duration::from_secs(5);
/// A killed program is gone.
pub const KILL_WAIT_MAX: Duration = Duration::from_secs(10);
/// Control groups of ended processes can be removed.
pub const CGROUP_WAIT_MAX: Duration = Duration::from_secs(5);
/// One HTTP request to a guest, whatever it is waiting for.
pub const GUEST_REQUEST_WAIT_MAX: Duration = Duration::from_secs(10);
pub const GUEST_ANSWER_BYTES_MAX: usize = 16 << 10;
/// Longest datagram that can be a tick.
pub const TICK_BYTES_MAX: usize = 1_024;
/// Vms that ticks are kept of, and boots of one vm that are remembered.
pub const TICKING_VMS_MAX: usize = 1_024;
pub const BOOTS_MAX: usize = 64;
/// Hosts of one lab: the last part of their addresses is 10 and their number.
pub const HOSTS_MAX: usize = 200;
