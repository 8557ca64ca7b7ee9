//! Numbered echo, from which a client sees what was lost, on which way, what came twice, and for how long nothing came.
//!
//! - UDP port 9001: a datagram that begins with a number of 8 bytes (big-endian) is answered by that number and one of
//!   ours that rises by one with each answer, 16 bytes.
//! - TCP port 9001: 8 bytes are answered by the same 8 bytes, for as long as the connection lasts.

use crate::serve;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::thread;

pub const PORT: u16 = 9_001;
pub const NUMBER_BYTES: usize = 8;

pub fn start() -> Result<(), String> {
    let socket =
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).map_err(|e| format!("can't listen on UDP port {PORT}: {e}"))?;
    thread::spawn(move || echo_datagrams(&socket));
    serve::start(PORT, echo)
}

fn echo_datagrams(socket: &UdpSocket) {
    let mut datagram = [0; 64];
    let mut answers = 0_u64;
    loop {
        let Ok((length, from)) = socket.recv_from(&mut datagram) else { continue };
        if length < NUMBER_BYTES {
            continue;
        }
        answers += 1;
        let mut answer = [0; 2 * NUMBER_BYTES];
        answer[..NUMBER_BYTES].copy_from_slice(&datagram[..NUMBER_BYTES]);
        answer[NUMBER_BYTES..].copy_from_slice(&answers.to_be_bytes());
        // What can't be sent is lost, which is what the client is there to see.
        let _ = socket.send_to(&answer, from);
    }
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut number = [0; NUMBER_BYTES];
    loop {
        stream.read_exact(&mut number)?;
        stream.write_all(&number)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::time::Duration;

    #[test]
    fn a_datagram_comes_back_with_the_number_of_the_answer() {
        let guest = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = guest.local_addr().unwrap();
        thread::spawn(move || echo_datagrams(&guest));
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        for (number, answers) in [(7_u64, 1_u64), (9, 2)] {
            client.send_to(&number.to_be_bytes(), address).unwrap();
            let mut answer = [0; 16];
            assert_eq!(client.recv(&mut answer).unwrap(), 16);
            assert_eq!(answer[..8], number.to_be_bytes());
            assert_eq!(answer[8..], answers.to_be_bytes());
        }
    }

    #[test]
    fn a_connection_stays_for_many_numbers() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        serve::spawn(listener, echo);
        for number in 1..=3_u64 {
            client.write_all(&number.to_be_bytes()).unwrap();
            let mut answer = [0; 8];
            client.read_exact(&mut answer).unwrap();
            assert_eq!(u64::from_be_bytes(answer), number);
        }
    }
}
