//! The network as a drawing in the terminal.

use std::fmt;

/// Names and addresses to draw. Several of one kind go on lines of their own.
#[derive(Debug)]
pub(super) struct Picture {
    pub(super) neighbour: Vec<String>,
    pub(super) host: Vec<String>,
    pub(super) bridge: String,
    pub(super) network: String,
    pub(super) gateways: Vec<String>,
    /// Where published, and what it leads to.
    pub(super) published: (u16, u16),
    /// What containers look like from outside.
    pub(super) masquerade: String,
    pub(super) containers: [Container; 2],
}

/// One of them.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) name: String,
    pub(super) host_end: String,
    pub(super) lines: Vec<String>,
}

const WIDTH: usize = 76;
const MIDDLE: usize = 38;
/// The columns of what leads to the containers.
const LEGS: [usize; 2] = [18, 57];
const HALF: usize = 37;

impl fmt::Display for Picture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut canvas = Canvas::default();
        let below = canvas.framed(MIDDLE - HALF / 2, 0, HALF, "neighbour", &self.neighbour);
        canvas.put(MIDDLE, below - 1, "┬");
        canvas.put(MIDDLE, below, "│ LAN");
        let host = below + 1;
        // The host's frame is drawn last, when its height is known.
        let mut row = host + 1;
        for line in &self.host {
            canvas.centred(MIDDLE, row, line);
            row += 1;
        }
        for x in LEGS[0]..=LEGS[1] {
            canvas.put(x, row, "─");
        }
        canvas.put(LEGS[0], row, "┌");
        canvas.put(MIDDLE, row, "┴");
        canvas.put(LEGS[1], row, "┐");
        let (port, inside) = self.published;
        canvas.put(LEGS[0], row + 1, "▼");
        canvas.put(LEGS[0] + 2, row + 1, &format!("in by port {port} → {}:{inside}", self.containers[0].name));
        canvas.put(LEGS[1], row + 1, "▲");
        let out = format!("out as {}", self.masquerade);
        canvas.put(LEGS[1] + 2, row + 1, &out);
        let inside = format!("network {}   {}", self.network, self.gateways.join("   "));
        let below = canvas.framed(3, row + 2, WIDTH - 6, "", &[inside]);
        // Between the legs, which come in through the frame.
        canvas.centred(MIDDLE, row + 2, &format!(" bridge {} ", self.bridge));
        for (x, container) in LEGS.into_iter().zip(&self.containers) {
            canvas.put(x, row + 2, "┴");
            canvas.put(x, below - 1, "┬");
            canvas.put(x, below, "│");
            canvas.put(x + 2, below, &container.host_end);
        }
        canvas.frame(0, host, WIDTH, below + 2 - host, "host");
        canvas.put(MIDDLE, host, "┴");
        let top = below + 3;
        for ((x, left), container) in LEGS.into_iter().zip([0, WIDTH - HALF]).zip(&self.containers) {
            canvas.put(x, below + 1, "┼");
            canvas.put(x, below + 2, "│ veth pair");
            canvas.framed(left, top, HALF, &format!("container {}", container.name), &container.lines);
            canvas.put(x, top, "┴");
        }
        for row in canvas.0 {
            writeln!(f, "{}", row.into_iter().collect::<String>().trim_end())?;
        }
        Ok(())
    }
}

/// Rows of characters, as long as need be.
#[derive(Debug, Default)]
struct Canvas(Vec<Vec<char>>);

impl Canvas {
    fn put(&mut self, x: usize, y: usize, text: &str) {
        for (x, c) in (x..).zip(text.chars()) {
            if self.0.len() <= y {
                self.0.resize(y + 1, Vec::new());
            }
            let row = &mut self.0[y];
            if row.len() <= x {
                row.resize(x + 1, ' ');
            }
            row[x] = c;
        }
    }

    fn centred(&mut self, x: usize, y: usize, text: &str) {
        self.put(x.saturating_sub(text.chars().count() / 2), y, text);
    }

    fn frame(&mut self, x: usize, y: usize, width: usize, height: usize, title: &str) {
        let (right, bottom) = (x + width - 1, y + height - 1);
        let bar = "─".repeat(width - 2);
        self.put(x, y, &format!("┌{bar}┐"));
        if !title.is_empty() {
            self.put(x + 2, y, &format!(" {title} "));
        }
        for row in y + 1..bottom {
            self.put(x, row, "│");
            self.put(right, row, "│");
        }
        self.put(x, bottom, &format!("└{bar}┘"));
    }

    /// A frame around lines; the row below it.
    fn framed(&mut self, x: usize, y: usize, width: usize, title: &str, lines: &[String]) -> usize {
        self.frame(x, y, width, lines.len() + 2, title);
        for (row, line) in (y + 1..).zip(lines) {
            let fitting: String = line.chars().take(width - 4).collect();
            self.put(x + 2, row, &fitting);
        }
        y + lines.len() + 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_fits_and_nothing_hides_another() {
        let container = |name: &str, last: u8| Container {
            name: name.to_owned(),
            host_end: "pva36245ec3ad75".to_owned(),
            lines: vec![format!("eth0 172.17.1.{last}/24"), format!("     fdff:ffff:ffff:ffff::{last}/64")],
        };
        let picture = Picture {
            neighbour: vec!["eth0 10.0.1.2/24".to_owned()],
            host: vec!["eth0 10.0.1.1/24".to_owned()],
            bridge: "br-82df788bf7c6".to_owned(),
            network: "web".to_owned(),
            gateways: vec!["172.17.1.1/24".to_owned(), "fdff:ffff:ffff:ffff::1/64".to_owned()],
            published: (1880, 80),
            masquerade: "10.0.1.1".to_owned(),
            containers: [container("site", 2), container("db", 3)],
        };
        let text = picture.to_string();
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        for part in [
            "┌─ neighbour ─",
            "eth0 10.0.1.2/24",
            "port 1880 → site:80",
            "out as 10.0.1.1",
            " bridge br-82df788bf7c6 ",
            "network web   ",
            "172.17.1.1/24   fdff:ffff:ffff:ffff::1/64",
            "172.17.1.3/24",
            "ffff:ffff::3/64",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        assert_eq!(text.matches("pva36245ec3ad75").count(), 2, "{text}");
    }
}
