//! What the kernel says.

use portolan_kernel::foreign;
use portolan_plan::Table;

/// A datagram; the same bytes are also taken for the payload of one message.
pub fn netlink(bytes: &[u8]) {
    let messages = foreign::datagram(bytes);
    let taken: usize = messages.iter().map(|(_, message)| message.as_ref().map_or(0, Vec::len)).sum();
    assert!(taken <= bytes.len() && messages.len() <= bytes.len() / 16);
    for (_, message) in &messages {
        match message {
            Ok(payload) => drop(foreign::everything(payload)),
            Err(error) => {
                assert!(error.errno() != 0);
                assert!(error.extack().is_none_or(|text| text.len() <= 3 * bytes.len()));
                super::terminal(&error.to_string());
            }
        }
    }
    assert!(foreign::notifications(bytes).len() <= 2 * messages.len());
    let text = foreign::everything(bytes);
    assert!(text.len() <= 40_000 + 40 * bytes.len(), "{} bytes of {}", text.len(), bytes.len());
}

/// An answer of nftables: the first byte says of which set.
pub fn nft(bytes: &[u8]) {
    let Some((which, payload)) = bytes.split_first() else { return };
    let tables = [Table::Inet, Table::Bridge, Table::Fence, Table::Plugins];
    let sets: Vec<_> = tables.into_iter().flat_map(portolan_plan::Set::in_table).collect();
    let set = sets[usize::from(*which) % sets.len()];
    let elements = foreign::elements(set, payload);
    assert!(elements.len() <= payload.len() / 4);
    for element in elements.into_iter().flatten() {
        assert_eq!((element.set, element.key.len()), (set, set.key().len()));
        let again = foreign::elements(set, &foreign::add_elements("portolan", set, &[&element]));
        // A comment has an end, and what is no text in it is replaced, which may make it longer.
        if element.owner.len() < 250 {
            assert_eq!(again, [Some(element)]);
        }
    }
}
