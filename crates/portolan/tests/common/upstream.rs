//! A name server of the world, and dig(1) to ask it or ours.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use portolan_kernel::netns::with_netns;
use portolan_lab::InNetns;

/// A program's output in a namespace; none, with a loud skip, where there is no such program.
pub(crate) fn output(place: &impl InNetns, program: &str, args: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    command.args(args);
    let result = portolan_kernel::process::command_in(place.netns(), command, false).unwrap().output();
    match result {
        Ok(output) => Some(String::from_utf8_lossy(&output.stdout).into_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            assert!(std::env::var_os("CI").is_none(), "CI must have {program}");
            eprintln!("SKIP: no {program}");
            None
        }
        Err(error) => panic!("{program}: {error}"),
    }
}

/// What `dig` answers with, without anything around it.
pub(crate) fn short(place: &impl InNetns, server: IpAddr, args: &[&str]) -> Option<Vec<String>> {
    let server = format!("@{server}");
    let all = [&[&server, "+short", "+time=2", "+tries=1"], args].concat();
    Some(output(place, "dig", &all)?.lines().map(str::to_owned).collect())
}

/// The status that `dig` shows.
pub(crate) fn status(place: &impl InNetns, server: IpAddr, args: &[&str]) -> Option<String> {
    let server = format!("@{server}");
    let all = [&[&server, "+time=2", "+tries=1"], args].concat();
    let text = output(place, "dig", &all)?;
    let status = text.split("status: ").nth(1).and_then(|rest| rest.split(',').next());
    Some(status.unwrap_or("none").to_owned())
}

/// A name server of the world that answers every question for an address with its own, and counts.
#[derive(Debug)]
pub(crate) struct Upstream {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Upstream {
    /// Starts one in the namespace of `place`.
    #[track_caller]
    pub(crate) fn start(place: &impl InNetns, bind: SocketAddr, answer: [u8; 4]) -> Self {
        let socket = with_netns(place.netns(), || UdpSocket::bind(bind).unwrap()).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, count) = (stop.clone(), asked.clone());
        let thread = std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((length, client)) = socket.recv_from(&mut bytes) else { continue };
                count.fetch_add(1, Ordering::Relaxed);
                let mut end = 12;
                while bytes[end] != 0 {
                    end += usize::from(bytes[end]) + 1;
                }
                end += 5;
                let is_address = bytes[end - 4..end - 2] == [0, 1];
                assert!(end <= length);
                let mut reply = bytes[..end].to_vec();
                reply[2] = 0x81;
                reply[3] = 0x80;
                reply[6..12].copy_from_slice(&[0, u8::from(is_address), 0, u8::from(!is_address), 0, 0]);
                if is_address {
                    reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
                    reply.extend(answer);
                } else {
                    // A start of authority, by which the absence may be kept for a minute.
                    reply.extend([0xc0, 12, 0, 6, 0, 1, 0, 0, 0, 60, 0, 22, 0, 0]);
                    reply.extend([60u32; 5].map(u32::to_be_bytes).as_flattened());
                }
                let _ = socket.send_to(&reply, client);
            }
        });
        Self { stop, asked, thread: Some(thread) }
    }

    /// Questions so far.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().unwrap().join();
    }
}
