//! The system call.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

/// A map or program that the kernel holds as long as somebody has it open or it is in use.
pub(crate) type Fd = OwnedFd;

/// `enum bpf_cmd`.
#[derive(Debug, Clone, Copy)]
enum Command {
    MapCreate = 0,
    MapLookup = 1,
    MapUpdate = 2,
    MapDelete = 3,
    MapNextKey = 4,
    ProgramLoad = 5,
    ProgramAttach = 8,
    ProgramDetach = 9,
    ProgramById = 13,
    MapById = 14,
    Info = 15,
    ProgramQuery = 16,
}

/// The commands that are used here: what a filter of system calls is to let pass.
pub(crate) const COMMANDS: [i32; 12] = [
    Command::MapCreate as i32,
    Command::MapLookup as i32,
    Command::MapUpdate as i32,
    Command::MapDelete as i32,
    Command::MapNextKey as i32,
    Command::ProgramLoad as i32,
    Command::ProgramAttach as i32,
    Command::ProgramDetach as i32,
    Command::ProgramById as i32,
    Command::MapById as i32,
    Command::Info as i32,
    Command::ProgramQuery as i32,
];

/// `BPF_PROG_TYPE_SCHED_CLS`, for programs at interfaces.
const AT_INTERFACES: u32 = 3;
/// `BPF_TCX_INGRESS` (Linux 6.6).
const INGRESS: u32 = 46;
const NAME: usize = 16;

/// Calls bpf(2) with the start of its attributes, the rest of which is zero.
fn bpf<T>(command: Command, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: the attributes are live and as large as is said; what addresses in them lead to is the caller's, who has it live.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command as libc::c_int, &raw mut *attributes, size_of::<T>()) };
    match i32::try_from(answer) {
        Ok(answer) if answer >= 0 => Ok(answer),
        _ => Err(io::Error::last_os_error()),
    }
}

fn open<T>(command: Command, attributes: &mut T) -> io::Result<Fd> {
    let fd = bpf(command, attributes)?;
    // SAFETY: these commands answer a new descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn name(text: &str) -> [u8; NAME] {
    let mut name = [0; NAME];
    // It ends in zero.
    for (to, from) in name[..NAME - 1].iter_mut().zip(text.bytes()) {
        *to = from;
    }
    name
}

fn text(name: [u8; NAME]) -> String {
    CStr::from_bytes_until_nul(&name).map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// What a map finds things by (`enum bpf_map_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MapKind {
    /// The key itself.
    Hash = 1,
    /// The longest prefix of it: a key begins with its length in bits, of four bytes in the machine's order.
    Prefixes = 11,
}

/// A map of keys to values of fixed lengths.
#[derive(Debug)]
pub(crate) struct Map {
    fd: Fd,
    key: usize,
    value: usize,
}

#[repr(C)]
#[derive(Default)]
struct MapInfo {
    kind: u32,
    id: u32,
    key: u32,
    value: u32,
    entries: u32,
    flags: u32,
    name: [u8; NAME],
}

#[repr(C)]
struct Element {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

impl Map {
    /// Makes one that takes memory for what is in it only.
    ///
    /// # Errors
    /// `EPERM` without `CAP_BPF`.
    pub(crate) fn create(called: &str, kind: MapKind, key: usize, value: usize, entries: u32) -> io::Result<Self> {
        const NO_PREALLOC: u32 = 1;
        #[repr(C)]
        struct Create {
            kind: u32,
            key: u32,
            value: u32,
            entries: u32,
            flags: u32,
            inner: u32,
            node: u32,
            name: [u8; NAME],
        }
        let mut create = Create {
            kind: kind as u32,
            key: key as u32,
            value: value as u32,
            entries,
            flags: NO_PREALLOC,
            inner: 0,
            node: 0,
            name: name(called),
        };
        Ok(Self { fd: open(Command::MapCreate, &mut create)?, key, value })
    }

    /// Opens one by its number; answers its name as well.
    fn by_id(id: u32) -> io::Result<(String, Self)> {
        let mut by_id = [id, 0, 0];
        let fd = open(Command::MapById, &mut by_id)?;
        let mut found = MapInfo::default();
        info(&fd, &mut found)?;
        Ok((text(found.name), Self { fd, key: found.key as usize, value: found.value as usize }))
    }

    /// What a program names it by, as long as this lives.
    pub(crate) fn number(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    fn element(&self, key: &[u8], value: *mut u8) -> Element {
        assert_eq!(key.len(), self.key, "a key of another map");
        Element { map: self.fd.as_raw_fd() as u32, pad: 0, key: key.as_ptr() as u64, value: value as u64, flags: 0 }
    }

    /// Has `key` lead to `value`, whatever it led to.
    ///
    /// # Errors
    /// `E2BIG` or `ENOSPC` when it is full.
    pub(crate) fn put(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        assert_eq!(value.len(), self.value, "a value of another map");
        bpf(Command::MapUpdate, &mut self.element(key, value.as_ptr().cast_mut())).map(drop)
    }

    /// Removes it.
    ///
    /// # Errors
    /// `ENOENT` where there is no such.
    pub(crate) fn remove(&self, key: &[u8]) -> io::Result<()> {
        bpf(Command::MapDelete, &mut self.element(key, std::ptr::null_mut())).map(drop)
    }

    /// What is under a key itself.
    ///
    /// # Errors
    /// What the kernel said.
    pub(crate) fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let mut value = vec![0; self.value];
        match bpf(Command::MapLookup, &mut self.element(key, value.as_mut_ptr())) {
            Ok(_) => Ok(Some(value)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All that is in it, which others may change meanwhile.
    ///
    /// # Errors
    /// What the kernel said.
    pub(crate) fn all(&self) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut all = Vec::new();
        let mut last: Option<Vec<u8>> = None;
        loop {
            let mut next = vec![0; self.key];
            let mut asked = Element {
                map: self.fd.as_raw_fd() as u32,
                pad: 0,
                key: last.as_ref().map_or(0, |key| key.as_ptr() as u64),
                value: next.as_mut_ptr() as u64,
                flags: 0,
            };
            match bpf(Command::MapNextKey, &mut asked) {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(all),
                Err(error) => return Err(error),
            }
            if let Some(value) = self.get(&next)? {
                all.push((next.clone(), value));
            }
            last = Some(next);
        }
    }
}

fn info<T>(fd: &Fd, found: &mut T) -> io::Result<()> {
    #[repr(C)]
    struct Info {
        fd: u32,
        length: u32,
        info: u64,
    }
    let mut info =
        Info { fd: fd.as_raw_fd() as u32, length: size_of::<T>() as u32, info: std::ptr::from_mut(found) as u64 };
    bpf(Command::Info, &mut info).map(drop)
}

/// A program at an interface.
#[derive(Debug)]
pub(crate) struct Program {
    /// What it is called.
    pub(crate) name: String,
    /// What tells it from all others while it is there.
    pub(crate) id: u32,
    /// The maps it knows, by name.
    pub(crate) maps: Vec<(String, Map)>,
    /// The program itself.
    pub(crate) fd: Fd,
}

/// Loads a program for packets at an interface.
///
/// # Errors
/// What the kernel said, with the end of what its verifier did where that refused it.
pub(crate) fn load(called: &str, code: &[u64]) -> io::Result<Fd> {
    #[repr(C)]
    struct Load {
        kind: u32,
        count: u32,
        code: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel: u32,
        flags: u32,
        name: [u8; NAME],
        device: u32,
        attach: u32,
    }
    // Some helpers want a licence that goes with the kernel's.
    const LICENSE: &CStr = c"Dual BSD/GPL";
    let mut load = Load {
        kind: AT_INTERFACES,
        count: code.len() as u32,
        code: code.as_ptr() as u64,
        license: LICENSE.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel: 0,
        flags: 0,
        name: name(called),
        device: 0,
        attach: INGRESS,
    };
    let error = match open(Command::ProgramLoad, &mut load) {
        Ok(fd) => return Ok(fd),
        Err(error) => error,
    };
    if ![libc::EACCES, libc::EINVAL].contains(&error.raw_os_error().unwrap_or_default()) {
        return Err(error);
    }
    let mut log = vec![0; 1 << 16];
    (load.log_level, load.log_size, load.log) = (1, log.len() as u32, log.as_mut_ptr() as u64);
    let error = match open(Command::ProgramLoad, &mut load) {
        Ok(fd) => return Ok(fd),
        Err(error) => error,
    };
    let said = CStr::from_bytes_until_nul(&log).map(|said| said.to_string_lossy().into_owned()).unwrap_or_default();
    tracing::debug!(%error, said, "the kernel does not take a program");
    Err(error)
}

#[repr(C)]
struct Attach {
    interface: u32,
    program: u32,
    place: u32,
    flags: u32,
    replace: u32,
    relative: u32,
    revision: u64,
}

fn at(interface: u32, program: &Fd) -> Attach {
    let program = program.as_raw_fd() as u32;
    Attach { interface, program, place: INGRESS, flags: 0, replace: 0, relative: 0, revision: 0 }
}

/// Has a program see what comes in by an interface of the calling thread's namespace, as long as that lives.
///
/// # Errors
/// `EEXIST` if it does already, `ENODEV` without the interface, `EINVAL` before Linux 6.6.
pub(crate) fn attach(interface: u32, program: &Fd) -> io::Result<()> {
    bpf(Command::ProgramAttach, &mut at(interface, program)).map(drop)
}

/// The same in place of a program that sees it now, without a packet in between that neither sees.
///
/// # Errors
/// As [`attach`]; `ENOENT` when `old` does not.
pub(crate) fn replace(interface: u32, old: &Fd, new: &Fd) -> io::Result<()> {
    const REPLACE: u32 = 1 << 2;
    let mut at = at(interface, new);
    (at.flags, at.replace) = (REPLACE, old.as_raw_fd() as u32);
    bpf(Command::ProgramAttach, &mut at).map(drop)
}

/// Has it see no more of that.
///
/// # Errors
/// `ENOENT` if it did not.
pub(crate) fn detach(interface: u32, program: &Fd) -> io::Result<()> {
    bpf(Command::ProgramDetach, &mut at(interface, program)).map(drop)
}

/// The numbers of the programs that see what comes in by an interface.
///
/// # Errors
/// `ENODEV` without the interface, `EINVAL` before Linux 6.6.
pub(crate) fn attached(interface: u32) -> io::Result<Vec<u32>> {
    #[repr(C)]
    #[derive(Default)]
    struct Query {
        interface: u32,
        place: u32,
        flags: u32,
        attached: u32,
        ids: u64,
        count: u32,
        pad: u32,
        more: [u64; 4],
    }
    // `BPF_MPROG_MAX`, as many as there can be.
    let mut ids = [0_u32; 64];
    let mut query =
        Query { interface, place: INGRESS, ids: ids.as_mut_ptr() as u64, count: ids.len() as u32, ..Query::default() };
    match bpf(Command::ProgramQuery, &mut query) {
        Ok(_) => Ok(ids.into_iter().take(query.count as usize).collect()),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// The programs of such names that see what comes in by an interface, with their maps. One that goes meanwhile is not among them.
///
/// # Errors
/// As [`attached`]; `EPERM` without `CAP_SYS_ADMIN`.
pub(crate) fn at_ingress(interface: u32, is_wanted: impl Fn(&str) -> bool) -> io::Result<Vec<Program>> {
    let mut programs = Vec::new();
    for id in attached(interface)? {
        match by_id(id, &is_wanted) {
            Ok(program) => programs.extend(program),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(programs)
}

#[repr(C)]
#[derive(Default)]
struct ProgramInfo {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    jited: u32,
    xlated: u32,
    jited_at: u64,
    xlated_at: u64,
    loaded: u64,
    uid: u32,
    maps: u32,
    maps_at: u64,
    name: [u8; NAME],
}

/// The number of a program.
///
/// # Errors
/// What the kernel said.
pub(crate) fn id(program: &Fd) -> io::Result<u32> {
    let mut found = ProgramInfo::default();
    info(program, &mut found)?;
    Ok(found.id)
}

fn by_id(id: u32, is_wanted: impl Fn(&str) -> bool) -> io::Result<Option<Program>> {
    let mut by_id = [id, 0, 0];
    let fd = open(Command::ProgramById, &mut by_id)?;
    let mut maps = [0_u32; 8];
    let mut found =
        ProgramInfo { maps: maps.len() as u32, maps_at: maps.as_mut_ptr() as u64, ..ProgramInfo::default() };
    info(&fd, &mut found)?;
    let name = text(found.name);
    if !is_wanted(&name) {
        return Ok(None);
    }
    let maps = maps.into_iter().take(found.maps as usize).map(Map::by_id).collect::<io::Result<_>>()?;
    Ok(Some(Program { name, id, maps, fd }))
}
