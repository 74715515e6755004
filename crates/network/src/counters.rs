//! What went through the interfaces of a container.

use std::io;
use std::path::Path;

use crate::namespace::within;

/// How the names of tap devices begin that join a VM to a network namespace; they are not
/// the container's interfaces but beside them.
pub const TAP_PREFIX: &str = "bhtap";

/// An interface's counters, as the container sees them: what it received and sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InterfaceCounters {
    /// Its name.
    pub name: String,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Errors in receiving.
    pub rx_errors: u64,
    /// Received and dropped.
    pub rx_dropped: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Errors in sending.
    pub tx_errors: u64,
    /// Dropped instead of sent.
    pub tx_dropped: u64,
}

/// The counters of the interfaces in the namespace at `path`, but for loopback. Blocks for
/// about a millisecond.
///
/// # Errors
/// What the system says: there is no such namespace, or it may not be entered.
pub fn counters(path: &Path) -> io::Result<Vec<InterfaceCounters>> {
    let table = within(path, || {
        std::fs::read_to_string("/proc/thread-self/net/dev")
    })?;
    Ok(parse(&table))
}

/// Reads the table of `/proc/net/dev` (`proc_pid_net(5)`).
fn parse(table: &str) -> Vec<InterfaceCounters> {
    table
        .lines()
        .filter_map(|line| {
            let (name, numbers) = line.split_once(':')?;
            let name = name.trim();
            if name == "lo" || name.starts_with(TAP_PREFIX) {
                return None;
            }
            let numbers: Vec<u64> = numbers
                .split_ascii_whitespace()
                .map_while(|number| number.parse().ok())
                .collect();
            let at = |index: usize| numbers.get(index).copied();
            Some(InterfaceCounters {
                name: name.to_owned(),
                rx_bytes: at(0)?,
                rx_packets: at(1)?,
                rx_errors: at(2)?,
                rx_dropped: at(3)?,
                tx_bytes: at(8)?,
                tx_packets: at(9)?,
                tx_errors: at(10)?,
                tx_dropped: at(11)?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:       9       9    0    0    0     0          0         0        9       9    0    0    0     0       0          0
  eth0:    1234      12    1    2    0     0          0         0     5678      56    3    4    0     0       0          0
bhtap0:    1234      12    1    2    0     0          0         0     5678      56    3    4    0     0       0          0
";

    #[test]
    fn the_containers_interfaces_are_counted() {
        let expected = InterfaceCounters {
            name: "eth0".to_owned(),
            rx_bytes: 1234,
            rx_packets: 12,
            rx_errors: 1,
            rx_dropped: 2,
            tx_bytes: 5678,
            tx_packets: 56,
            tx_errors: 3,
            tx_dropped: 4,
        };
        assert_eq!(parse(TABLE), [expected]);
        assert_eq!(parse("nonsense: 1 2 x\n"), []);
        assert!(counters(Path::new("/nonexistent")).is_err());
    }
}
