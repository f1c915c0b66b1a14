//! The TCP addresses on which processes of this machine listen.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

/// The state TCP_LISTEN in `/proc/net/tcp` (proc(5)).
const LISTEN: &str = "0A";

/// All of them in this network namespace; without those that cannot be read.
pub(super) fn tcp_addresses() -> Vec<SocketAddr> {
    let files = ["/proc/net/tcp", "/proc/net/tcp6"].map(|file| fs::read_to_string(file).unwrap_or_default());
    files.iter().flat_map(|text| text.lines().skip(1)).filter_map(listening).collect()
}

/// The local address in a line, if it is one of a listening socket.
fn listening(line: &str) -> Option<SocketAddr> {
    let mut fields = line.split_whitespace().skip(1);
    let (local, state) = (fields.next()?, fields.nth(1)?);
    let (ip, port) = local.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    if state != LISTEN || !ip.is_ascii() {
        return None;
    }
    // Words of 32 bits in the byte order of the machine.
    let word = |at: usize| Some(u32::from_str_radix(ip.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    match ip.len() {
        8 => Some((Ipv4Addr::from(word(0)?), port).into()),
        32 => {
            let bytes: Vec<u8> = [word(0)?, word(8)?, word(16)?, word(24)?].concat();
            Some((Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?), port).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn own_sockets_are_found_while_they_listen() {
        let sockets = ["127.0.0.3:0", "[::1]:0"].map(|address| TcpListener::bind(address).unwrap());
        let addresses = sockets.each_ref().map(|socket| socket.local_addr().unwrap());
        let client = std::net::TcpStream::connect(addresses[0]).unwrap();
        let found = tcp_addresses();
        assert!(addresses.iter().all(|address| found.contains(address)), "{found:?}");
        assert!(!found.contains(&client.local_addr().unwrap()));
        drop(sockets);
        assert!(!addresses.iter().any(|address| tcp_addresses().contains(address)));
    }

    #[test]
    fn lines_without_an_address_are_skipped() {
        for line in
            ["", "0: x", "0: 0100007F:0050 00000000:0000 01", "0: 01007F:0050 00000000:0000 0A", "0: é:0050 x 0A"]
        {
            assert_eq!(listening(line), None, "{line}");
        }
    }
}
