//! How much of what a host sends may wait unsent in its kernel.
//!
//! QEMU sends the pages that a guest waits for after a post-copy's switch-over with the same thread as all others. That
//! thread stands still while its connection's buffer is full, until a third of it has drained: with Linux's 4 MiB, for
//! 11 ms on a gigabit link, each time. With a bound on unsent data (`TCP_NOTSENT_LOWAT`, tcp(7)) it stands still for as
//! long as half the bound takes, and what is in flight is not touched.

use std::io;

const SETTING: &str = "/proc/sys/net/ipv4/tcp_notsent_lowat";
/// A millisecond of a gigabit link.
const UNSENT_MAX: u32 = 128 << 10;

/// Sets the bound for the host's whole network namespace, unless a smaller one is set already.
pub fn shorten() -> io::Result<()> {
    let set = std::fs::read_to_string(SETTING)?;
    // Unlimited is -1 written without a sign.
    if set.trim().parse::<u32>().is_ok_and(|bytes| bytes <= UNSENT_MAX) {
        return Ok(());
    }
    std::fs::write(SETTING, UNSENT_MAX.to_string())
}
