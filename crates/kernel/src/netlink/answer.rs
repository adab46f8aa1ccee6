//! What the kernel sends, taken apart.

use netlink_bindings::utils::IterableChunks;

use super::NetlinkError;
use crate::process;

const NLMSG_HDRLEN: usize = 16;
pub(super) const NLMSG_NOOP: u16 = libc::NLMSG_NOOP as u16;
pub(super) const NLMSG_ERROR: u16 = libc::NLMSG_ERROR as u16;
pub(super) const NLMSG_DONE: u16 = libc::NLMSG_DONE as u16;
pub(super) const NLMSG_OVERRUN: u16 = libc::NLMSG_OVERRUN as u16;
pub(super) const NLM_F_DUMP_INTR: u16 = libc::NLM_F_DUMP_INTR as u16;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;
const NLMSGERR_ATTR_OFFS: u16 = 2;

/// One message of a datagram.
pub(super) struct Incoming<'a> {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) sequence: u32,
    pub(super) payload: &'a [u8],
}

/// Splits a datagram into messages.
pub(super) struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Messages<'a> {
    pub(super) fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Incoming<'a>;

    fn next(&mut self) -> Option<Incoming<'a>> {
        let header: &[u8; NLMSG_HDRLEN] = self.rest.first_chunk()?;
        let len = u32::from_ne_bytes(*header.first_chunk()?) as usize;
        let message = Incoming {
            kind: u16::from_ne_bytes([header[4], header[5]]),
            flags: u16::from_ne_bytes([header[6], header[7]]),
            sequence: u32::from_ne_bytes([header[8], header[9], header[10], header[11]]),
            payload: self.rest.get(NLMSG_HDRLEN..len)?,
        };
        self.rest = self.rest.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some(message)
    }
}

/// Decodes `NLMSG_ERROR` and `NLMSG_DONE`.
pub(super) fn acknowledgement(message: &Incoming<'_>) -> Result<(), NetlinkError> {
    let Some(code) = message.payload.first_chunk() else {
        // A dump of no objects may end in a bare NLMSG_DONE.
        return Ok(());
    };
    let code = i32::from_ne_bytes(*code);
    if code >= 0 {
        return Ok(());
    }
    let mut error = NetlinkError::from_errno(code.saturating_neg());
    if message.flags & NLM_F_ACK_TLVS != 0 {
        // struct nlmsgerr: the code, then the header of the failed message, then (unless capped)
        // its payload, then the attributes.
        let attributes = if message.kind == NLMSG_DONE {
            message.payload.get(4..)
        } else if message.flags & NLM_F_CAPPED != 0 {
            message.payload.get(4 + NLMSG_HDRLEN..)
        } else {
            message
                .payload
                .get(4..8)
                .and_then(|len| len.first_chunk())
                .map(|len| u32::from_ne_bytes(*len) as usize)
                .and_then(|len| message.payload.get(4 + len.next_multiple_of(4)..))
        };
        for (header, value) in IterableChunks::new(attributes.unwrap_or(&[])) {
            match header.r#type {
                NLMSGERR_ATTR_MSG => {
                    let text = value.split(|byte| *byte == 0).next().unwrap_or(&[]);
                    error.extack = Some(process::shown(text));
                }
                NLMSGERR_ATTR_OFFS => {
                    error.offset = value.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
                }
                _ => {}
            }
        }
    }
    Err(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capped_error_with_attributes_is_decoded() {
        let mut payload = (-libc::EINVAL).to_ne_bytes().to_vec();
        payload.extend_from_slice(&[0; NLMSG_HDRLEN]);
        netlink_bindings::utils::push_header(&mut payload, NLMSGERR_ATTR_MSG, 4);
        payload.extend_from_slice(b"bad\0");
        netlink_bindings::utils::push_header(&mut payload, NLMSGERR_ATTR_OFFS, 4);
        payload.extend_from_slice(&44u32.to_ne_bytes());
        let message =
            Incoming { kind: NLMSG_ERROR, flags: NLM_F_CAPPED | NLM_F_ACK_TLVS, sequence: 1, payload: &payload };
        let error = acknowledgement(&message).unwrap_err();
        assert_eq!(error.extack(), Some("bad"));
        assert_eq!(error.offset(), Some(44));
        assert_eq!(error.to_string(), "invalid argument (EINVAL): bad");
    }
}
