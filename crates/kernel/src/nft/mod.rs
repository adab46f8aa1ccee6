//! nftables by netlink: the constant ruleset, its elements, and reading both back.
//!
//! [`encode`] turns `portolan-plan`'s values into messages of one transaction, [`decode`] turns listings back into
//! values. No text is parsed and no program started. Message and attribute numbers: include/uapi/linux/netfilter/
//! nf_tables.h; the forms that nft(8) can list were taken from what it sends itself.

pub mod decode;
pub mod encode;

pub(crate) use decode::{listed, rule};
use portolan_plan::{Element, Set, Table};

use crate::netlink::NetlinkError;

const SUBSYSTEM: u16 = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8;
const fn message(kind: i32) -> u16 {
    SUBSYSTEM | kind as u16
}
/// `NFT_MSG_DESTROYSETELEM` (Linux 6.3): a deletion that does not mind absence.
const DESTROY_SET_ELEMENT: i32 = 30;

/// The address family number of a table.
const fn family(table: Table) -> u8 {
    match table {
        Table::Inet | Table::Fence | Table::Plugins => libc::NFPROTO_INET as u8,
        Table::Bridge => libc::NFPROTO_BRIDGE as u8,
        Table::Shortcuts => libc::NFPROTO_NETDEV as u8,
    }
}

/// What to say of a transaction for which others are faster again and again.
pub fn outrun() -> NetlinkError {
    NetlinkError::from_errno(libc::ERESTART)
}

/// Whether a transaction of a generation was refused because that is past.
pub fn is_outrun(error: &NetlinkError) -> bool {
    error.errno() == libc::ERESTART
}

/// The longest comment, in bytes: user data ends at 256 (`NFT_USERDATA_MAXLEN`), and this has a byte for its length.
pub const COMMENT_MAX: usize = 253;

/// The request that adds elements to a set, with its header (`struct nfgenmsg`).
pub(crate) fn request(table: &str, set: Set, elements: &[&Element]) -> Vec<u8> {
    let mut buf = Vec::new();
    encode::push_elements(&mut buf, table, set, elements, true);
    buf
}

/// `NFTNL_UDATA_RULE_COMMENT` and `NFTNL_UDATA_SET_ELEM_COMMENT`: type, length, text with a final NUL.
fn comment_userdata(text: &str) -> Vec<u8> {
    let text = &text.as_bytes()[..text.len().min(COMMENT_MAX)];
    let mut data = vec![0, text.len() as u8 + 1];
    data.extend_from_slice(text);
    data.push(0);
    data
}

/// The comment in a rule's or an element's user data, if it has one.
fn comment_of(userdata: &[u8]) -> Option<String> {
    let mut rest = userdata;
    while let [kind, len, tail @ ..] = rest {
        let value = tail.get(..usize::from(*len))?;
        if *kind == 0 {
            let text = value.strip_suffix(&[0]).unwrap_or(value);
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        rest = &tail[usize::from(*len)..];
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_survive() {
        assert_eq!(comment_of(&comment_userdata("network web")).as_deref(), Some("network web"));
        assert_eq!(comment_of(&comment_userdata(&"x".repeat(300))).unwrap().len(), COMMENT_MAX);
        assert_eq!(comment_of(&[9, 1, 0]), None);
        assert_eq!(comment_of(&[0, 200, 1]), None);
    }
}
