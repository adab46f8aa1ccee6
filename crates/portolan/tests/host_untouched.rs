//! What is the host's stays as it is.

mod common;

use common::World;

#[test]
fn smoke() {
    let Some(world) = World::or_skip("smoke") else { return };
    let before = world.state();
    world.network("web", &[]);
    let c = world.container("c1", &["--network", "web", "-p", "8080:80"]);
    println!("{c:#?}");
    world.verify();
    world.portolan_ok(&["detach", "c1"]);
    world.portolan_ok(&["network", "rm", "web"]);
    before.assert_same(&world.state(), "all");
}
