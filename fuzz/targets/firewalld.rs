//! What firewalld answers over D-Bus.

use portolan_firewalld::foreign;

/// The body of an answer: a policy's settings, or one setting.
pub fn answer(bytes: &[u8]) {
    let _on = foreign::is_yes(bytes);
    let Some(rules) = foreign::rules(bytes) else { return };
    let length: usize = rules.iter().map(String::len).sum();
    assert!(length <= bytes.len(), "{length} of {}", bytes.len());
    assert!(rules.iter().all(|rule| !rule.contains('\0')), "{rules:?}");
    assert_eq!(foreign::rules(&foreign::write_rules(&rules)), Some(rules), "what is written can be read");
}
