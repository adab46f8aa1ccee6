//! Prints the constant ruleset as text: `cargo run -p portolan-plan --example ruleset | nft -c -f -`.
fn main() {
    print!("{}", portolan_plan::ruleset::render("portolan", []));
}
