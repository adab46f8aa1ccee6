//! What a resolv.conf(5) says, for the result.

use std::fs;

use portolan_cni::{Dns, Error};

use crate::ipam::{reason, refused};

/// Reads a file.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn read(path: &str) -> Result<Dns, Error> {
    let bytes = fs::read(path).map_err(|error| refused(format!("open {path}: {}", reason(&error))))?;
    Ok(parse(&String::from_utf8_lossy(&bytes)))
}

pub(crate) fn parse(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
        let mut words = line.split_whitespace();
        let Some(key) = words.next() else { continue };
        let values: Vec<String> = words.map(str::to_owned).collect();
        let Some(first) = values.first().cloned() else { continue };
        match key {
            "nameserver" => dns.nameservers.push(first),
            "domain" => dns.domain = first,
            "search" => dns.search.extend(values),
            "options" => dns.options.extend(values),
            _ => {}
        }
    }
    dns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let dns = parse(
            "# a\n;b\nnameserver 1.1.1.1 # x\nnameserver\n search a b\nsearch c\ndomain d\noptions ndots:2\nx y\n",
        );
        assert_eq!((dns.nameservers, dns.domain), (vec!["1.1.1.1".to_owned()], "d".to_owned()));
        assert_eq!((dns.search.join(" "), dns.options.join(" ")), ("a b c".to_owned(), "ndots:2".to_owned()));
    }
}
