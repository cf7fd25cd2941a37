//! What `/proc` says (proc(5)).

use std::collections::HashSet;
use std::fs;
use std::io::{self, BufRead};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// This boot's id.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// When `pid` started, in clock ticks since boot; `None` when there is no such process.
pub fn start_time(pid: u32) -> Option<u64> {
    stat_field(pid, 22)?.parse().ok()
}

/// Whether `pid` has ended and only waits to be reaped, or is gone.
pub fn ended(pid: u32) -> bool {
    stat_field(pid, 3).is_none_or(|state| matches!(state.as_str(), "Z" | "X"))
}

/// Whether `pid` is stopped by a signal.
pub fn stopped(pid: u32) -> bool {
    stat_field(pid, 3).is_some_and(|state| state == "T")
}

/// Bytes of memory that `pid` holds: its proportional set (proc_pid_smaps(5)), or its resident set
/// where that cannot be read; 0 when there is no such process.
pub fn memory(pid: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let pss = rollup.lines().find_map(|l| l.strip_prefix("Pss:"));
    let kib = pss.and_then(|l| l.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.map_or_else(
        || stat_field(pid, 24).and_then(|p| p.parse::<u64>().ok()).unwrap_or(0) * 4096,
        |kib| kib * 1024,
    )
}

/// Field `n` of `/proc/PID/stat`, counted from 1 as in proc_pid_stat(5); after the second.
fn stat_field(pid: u32, n: usize) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses, which may hold anything.
    let rest = &stat[stat.rfind(')')? + 2..];
    rest.split_whitespace().nth(n - 3).map(str::to_owned)
}

/// The ids of all processes.
pub fn pids() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
}

/// The group of `pid`.
pub fn group(pid: u32) -> Option<u32> {
    stat_field(pid, 5)?.parse().ok()
}

/// Whether `pid` has `NAME=value` in the environment it was started with.
pub fn has_env(pid: u32, entry: &str) -> bool {
    fs::read(format!("/proc/{pid}/environ"))
        .is_ok_and(|env| env.split(|b| *b == 0).any(|e| e == entry.as_bytes()))
}

/// The inodes of the sockets that listen on `port` of 127.0.0.1 or of every address.
pub fn listeners(port: u16) -> io::Result<HashSet<u64>> {
    let reached = |ip: IpAddr| ip.is_unspecified() || ip.to_canonical() == Ipv4Addr::LOCALHOST;
    let all = listening()?.into_iter();
    let here = all.filter(|(at, _)| at.port() == port && reached(at.ip()));
    Ok(here.map(|(_, inode)| inode).collect())
}

/// Where TCP sockets listen, and their inodes.
pub fn listening() -> io::Result<Vec<(SocketAddr, u64)>> {
    const LISTEN: &str = "0A";
    let mut found = Vec::new();
    for file in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let table = match fs::File::open(file) {
            Ok(table) => io::BufReader::new(table),
            // A kernel without IPv6.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        for line in table.lines().skip(1) {
            let line = line?;
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [_, local, _, state, _, _, _, _, _, inode, ..] = fields[..] else { continue };
            // The kernel lists sockets that listen first; with ten thousand clients the rest is
            // long.
            if state != LISTEN {
                break;
            }
            if let (Some(address), Ok(inode)) = (address(local), inode.parse()) {
                found.push((address, inode));
            }
        }
    }
    Ok(found)
}

/// `0100007F:1F90` and the like: words of the address as this machine keeps them, and the port.
fn address(hex: &str) -> Option<SocketAddr> {
    let (address, port) = hex.split_once(':')?;
    let mut bytes = Vec::with_capacity(16);
    for at in (0..address.len()).step_by(8) {
        let word = u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let v4 = <[u8; 4]>::try_from(&bytes[..]).map(IpAddr::from);
    let ip = v4.or_else(|_| <[u8; 16]>::try_from(&bytes[..]).map(IpAddr::from)).ok()?;
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

/// Whether `pid` has one of these sockets open.
pub fn holds_socket(pid: u32, inodes: &HashSet<u64>) -> bool {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    entries.flatten().any(|entry| {
        fs::read_link(entry.path()).is_ok_and(|target| {
            let text = target.to_string_lossy();
            text.strip_prefix("socket:[")
                .and_then(|t| t.strip_suffix(']'))
                .and_then(|t| t.parse().ok())
                .is_some_and(|inode| inodes.contains(&inode))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_found() {
        let pid = std::process::id();
        assert!(start_time(pid).is_some_and(|t| t > 0));
        assert!(!ended(pid) && group(pid).is_some() && pids().contains(&pid));
        assert!(memory(pid) > 100_000 && memory(u32::MAX) == 0 && !stopped(pid));
        assert_eq!(start_time(u32::MAX), None);
        assert!(ended(u32::MAX));
    }

    #[test]
    fn where_a_socket_listens_is_read() {
        for bind in ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0", "[::]:0"] {
            // A machine without IPv6 has two of them.
            let Ok(socket) = std::net::TcpListener::bind(bind) else { continue };
            let at = socket.local_addr().unwrap();
            let all = listening().unwrap();
            let own = all.iter().find(|(address, _)| *address == at);
            let (_, inode) = own.unwrap_or_else(|| panic!("{at} in {all:?}"));
            assert!(holds_socket(std::process::id(), &HashSet::from([*inode])));
            let reached = listeners(at.port()).unwrap().contains(inode);
            assert_eq!(reached, bind != "[::1]:0", "{bind}");
        }
    }

    #[test]
    fn a_listening_socket_has_its_owner() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let inodes = listeners(port).unwrap();
        assert_eq!(inodes.len(), 1);
        assert!(holds_socket(std::process::id(), &inodes));
        drop(socket);
        // The kernel may have given the port to another test's socket by now, not the inode.
        assert!(listeners(port).unwrap().is_disjoint(&inodes));
        assert!(!holds_socket(std::process::id(), &inodes));
    }
}
