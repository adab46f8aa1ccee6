//! Groups of users (group(5)).

use std::{fs, io};

/// The number of the group `name`, as `/etc/group` has it; none where there is no such.
///
/// # Errors
/// When the file cannot be read.
pub fn id_of(name: &str) -> io::Result<Option<u32>> {
    match fs::read("/etc/group") {
        // Of other groups, names may be in any encoding.
        Ok(text) => Ok(find(&String::from_utf8_lossy(&text), name)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn find(text: &str, name: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_by_their_names() {
        let text = "root:x:0:\n# a remark\nbroken\ndocker:x:991:me,you\nodd:x:many:\n";
        assert_eq!(find(text, "docker"), Some(991));
        assert_eq!(find(text, "root"), Some(0));
        for none in ["broken", "odd", "dock", ""] {
            assert_eq!(find(text, none), None, "{none}");
        }
    }
}
