use portolan_plan::{Element, Object, Step};

/// What steps about rules come to, for the drivers that write all of them at once.
pub(super) struct Changes<'a> {
    pub gone: Vec<&'a Element>,
    pub new: Vec<&'a Element>,
    /// What holds the elements is made, or made anew.
    pub makes: bool,
    /// What holds the elements goes.
    pub unmakes: bool,
}

impl<'a> Changes<'a> {
    pub(super) fn of(steps: &'a [Step]) -> Self {
        let mut changes = Self { gone: Vec::new(), new: Vec::new(), makes: false, unmakes: false };
        for step in steps {
            let (from, to) = step.sides();
            match from {
                Some(Object::Element(element)) => changes.gone.push(element),
                Some(Object::Ruleset(_)) => changes.unmakes = true,
                _ => {}
            }
            match to {
                Some(Object::Element(element)) => changes.new.push(element),
                Some(Object::Ruleset(_)) => changes.makes = true,
                _ => {}
            }
        }
        changes
    }
}
