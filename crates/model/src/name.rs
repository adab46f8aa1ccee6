use std::fmt;
use std::str::FromStr;

use crate::Invalid;
use crate::invalid::serde_by_text;

macro_rules! text_type {
    ($(#[$doc:meta])* $type:ident, $check:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(String);

        impl $type {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl std::borrow::Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = Invalid;

            fn from_str(text: &str) -> Result<Self, Invalid> {
                $check(text)?;
                Ok(Self(text.to_owned()))
            }
        }

        serde_by_text!($type);
    };
}

text_type! {
    /// The name of a network, a container or an alias: `[A-Za-z0-9][A-Za-z0-9_.-]*`, at most 128
    /// characters. It holds no path separator, so it is safe as a file name.
    Name, check_name
}

text_type! {
    /// A network interface's name: 1 to 15 bytes (`IFNAMSIZ`), without `/`, `:` or white space
    /// (`dev_valid_name`, net/core/dev.c), and here printable ASCII only.
    IfName, check_ifname
}

text_type! {
    /// A host name as `sethostname(2)` takes it: at most 63 characters of `[A-Za-z0-9.-]`, each label not
    /// starting or ending in a hyphen (RFC 1123 §2.1).
    HostName, check_hostname
}

fn check_name(text: &str) -> Result<(), Invalid> {
    const WHAT: &str = "name";
    if text.is_empty() {
        return Err(Invalid::new(WHAT, text, "is empty"));
    }
    if text.len() > 128 {
        return Err(Invalid::new(WHAT, text, "is longer than 128 characters"));
    }
    if !text.as_bytes()[0].is_ascii_alphanumeric() {
        return Err(
            Invalid::new(WHAT, text, "does not start with a letter or digit").hint("use [a-zA-Z0-9][a-zA-Z0-9_.-]*")
        );
    }
    match text.chars().find(|c| !c.is_ascii_alphanumeric() && !matches!(c, '_' | '.' | '-')) {
        Some(c) => {
            Err(Invalid::new(WHAT, text, format!("holds the character {c:?}")).hint("use [a-zA-Z0-9][a-zA-Z0-9_.-]*"))
        }
        None => Ok(()),
    }
}

fn check_ifname(text: &str) -> Result<(), Invalid> {
    const WHAT: &str = "interface name";
    if text.is_empty() || text == "." || text == ".." {
        return Err(Invalid::new(WHAT, text, "is empty or a directory"));
    }
    // What programs take for an option or for "all but", and what iptables(8) and firewalld take for all that begin so.
    if text.starts_with(['-', '!']) || text.ends_with('+') {
        return Err(Invalid::new(WHAT, text, "starts with `-` or `!`, or ends in `+`"));
    }
    if text.len() > 15 {
        return Err(Invalid::new(WHAT, text, "is longer than 15 characters"));
    }
    match text.chars().find(|c| !c.is_ascii_graphic() || matches!(c, '/' | ':' | '%' | '"' | '\\')) {
        Some(c) => Err(Invalid::new(WHAT, text, format!("holds the character {c:?}"))),
        None => Ok(()),
    }
}

fn check_hostname(text: &str) -> Result<(), Invalid> {
    const WHAT: &str = "host name";
    if text.is_empty() || text.len() > 63 {
        return Err(Invalid::new(WHAT, text, "is not 1 to 63 characters long"));
    }
    for label in text.split('.') {
        let fits = !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if !fits {
            return Err(Invalid::new(WHAT, text, format!("has the label {label:?}"))
                .hint("labels are letters, digits and inner hyphens"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_out_paths_and_control_characters() {
        for good in ["web", "a", "my-net_1.x", "0"] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        for bad in ["", "-x", ".hidden", "a/b", "../x", "a b", "a\0b", "ä", &"x".repeat(129)] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
        let long = "x".repeat(10_000).parse::<Name>().unwrap_err().to_string();
        assert!(long.len() < 200, "{long}");
    }

    #[test]
    fn interface_names_as_the_kernel_takes_them() {
        assert!("eth0".parse::<IfName>().is_ok());
        for bad in ["", ".", "..", "a/b", "a:1", "a b", "0123456789abcdef", "x%d", "ü", "-x", "!x", "e+"] {
            assert!(bad.parse::<IfName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn host_names() {
        assert!("db-1.example".parse::<HostName>().is_ok());
        for bad in ["", "-a", "a-", "a..b", "a b", &"x".repeat(64)] {
            assert!(bad.parse::<HostName>().is_err(), "{bad:?}");
        }
    }
}
