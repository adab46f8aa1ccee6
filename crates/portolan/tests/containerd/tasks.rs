//! Containers of `ctr run --cni`.

use portolan_lab::eventually;
use portolan_lab::server::TcpServer;

use crate::scene::{HOST, HOST6, LONG, NEIGHBOUR, NEIGHBOUR6, Scene, at, reaches, says};

#[test]
fn ctr() -> anyhow::Result<()> {
    let Some(scene) = Scene::or_skip("containerd-ctr") else { return Ok(()) };
    let mut detached = scene.run("one", &["--detach"])?;
    assert!(detached.wait()?.success());
    let mut attached = scene.run("two", &["--rm"])?;
    let (one, two) = (scene.place("one")?, scene.place("two")?);
    // go-cni puts the namespace before the name.
    let mut names = scene.names()?;
    names.sort();
    assert_eq!(names, ["default-one", "default-two"]);
    for (family, (host, neighbour)) in [(HOST, NEIGHBOUR), (HOST6, NEIGHBOUR6)].into_iter().enumerate() {
        says(&one, (scene.addresses("default-two")?[family], 80).into(), "two")?;
        says(&two, (scene.addresses("default-one")?[family], 80).into(), "one")?;
        let _world = TcpServer::start(&scene.neighbour, at(neighbour, 99), "world")?;
        assert_eq!(reaches(&one, at(neighbour, 99), "world")?.to_string(), host, "masqueraded");
    }
    scene.verify()?;
    scene.ctr(&["task", "kill", "-s", "KILL", "two"])?;
    attached.wait()?;
    assert_eq!(scene.names()?, ["default-one"], "`ctr run` that stays calls DEL");
    // One that left does not, and until 1.7 nobody does: what its namespace did not take with it is ours to find.
    scene.ctr(&["task", "kill", "-s", "KILL", "one"])?;
    assert!(eventually(LONG, || scene.ctr(&["task", "rm", "one"]).is_ok()), "the task stays");
    scene.ctr(&["container", "rm", "one"])?;
    scene.portolan(&["gc"])?;
    scene.empty(&["lab-default-one-eth0"])
}
