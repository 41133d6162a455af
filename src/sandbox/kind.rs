//! Whether a container is a pod's sandbox, one of its containers, or on its own; pure. The
//! annotations are those of containerd's CRI plugin, of CRI-O and of dockershim.

use std::collections::HashMap;

use crate::error::{Error, Result};

/// What a container is to a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It is in no pod.
    #[default]
    Single,
    /// It holds the pod's namespaces.
    Sandbox,
    /// It is in the pod of this sandbox.
    Container {
        /// The sandbox's id.
        sandbox: String,
    },
}

/// The names of the same two annotations in one system.
struct Keys {
    kind: &'static str,
    sandbox_value: &'static str,
    sandbox_id: &'static str,
}

/// The systems, in the order in which their annotations count.
const SYSTEMS: [Keys; 3] = [
    Keys {
        kind: "io.kubernetes.cri.container-type",
        sandbox_value: "sandbox",
        sandbox_id: "io.kubernetes.cri.sandbox-id",
    },
    Keys {
        kind: "io.kubernetes.cri-o.ContainerType",
        sandbox_value: "sandbox",
        sandbox_id: "io.kubernetes.cri-o.SandboxID",
    },
    Keys {
        kind: "io.kubernetes.docker.type",
        sandbox_value: "podsandbox",
        sandbox_id: "io.kubernetes.sandbox.id",
    },
];

impl Kind {
    /// Reads a container's annotations. One that is empty counts as missing.
    ///
    /// # Errors
    /// [`Error::Invalid`] that quotes a type that is not known, or says which annotation a pod's
    /// container lacks.
    pub(crate) fn of(annotations: &HashMap<String, String>) -> Result<Self> {
        let value = |key: &str| annotations.get(key).filter(|value| !value.is_empty());
        let Some((system, kind)) =
            SYSTEMS.iter().find_map(|system| Some((system, value(system.kind)?)))
        else {
            return Ok(Self::Single);
        };
        if kind == system.sandbox_value {
            return Ok(Self::Sandbox);
        }
        if kind != "container" {
            let (key, known) = (system.kind, system.sandbox_value);
            return Err(Error::Invalid(format!(
                "annotation {key}: unknown container type {kind:?}; it is {known:?} or \"container\""
            )));
        }
        match sandbox_id(annotations) {
            Some(id) => Ok(Self::Container { sandbox: id.to_owned() }),
            None => {
                let (kind, id) = (system.kind, system.sandbox_id);
                let why = format!("annotation {kind} is \"container\", but {id} is missing");
                Err(Error::Invalid(why))
            }
        }
    }
}

/// The id of the pod's sandbox, whoever names it.
pub(crate) fn sandbox_id(annotations: &HashMap<String, String>) -> Option<&str> {
    let ids = SYSTEMS.iter().filter_map(|system| annotations.get(system.sandbox_id));
    ids.map(String::as_str).find(|id| !id.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_comes_from_the_annotations_in_their_order() {
        let (cri, crio, docker) = (
            "io.kubernetes.cri.container-type",
            "io.kubernetes.cri-o.ContainerType",
            "io.kubernetes.docker.type",
        );
        let (cri_id, crio_id, docker_id) = (
            "io.kubernetes.cri.sandbox-id",
            "io.kubernetes.cri-o.SandboxID",
            "io.kubernetes.sandbox.id",
        );
        let container = |id: &str| Ok(Kind::Container { sandbox: id.into() });
        let cases = [
            ("none", vec![], Ok(Kind::Single)),
            ("other", vec![("a", "b")], Ok(Kind::Single)),
            ("only an id", vec![(cri_id, "p")], Ok(Kind::Single)),
            ("empty", vec![(cri, "")], Ok(Kind::Single)),
            ("sandbox", vec![(cri, "sandbox"), (cri_id, "p")], Ok(Kind::Sandbox)),
            ("container", vec![(cri, "container"), (cri_id, "p")], container("p")),
            ("CRI-O's sandbox", vec![(crio, "sandbox")], Ok(Kind::Sandbox)),
            ("CRI-O's container", vec![(crio, "container"), (crio_id, "q")], container("q")),
            ("dockershim's sandbox", vec![(docker, "podsandbox")], Ok(Kind::Sandbox)),
            ("dockershim's", vec![(docker, "container"), (docker_id, "r")], container("r")),
            ("order of types", vec![(crio, "sandbox"), (cri, "container"), (cri_id, "p")], {
                container("p")
            }),
            (
                "order of ids",
                vec![(cri, "container"), (docker_id, "r"), (crio_id, "q")],
                container("q"),
            ),
            ("unknown", vec![(cri, "podsandbox")], Err("unknown container type \"podsandbox\"")),
            ("unknown, dockershim", vec![(docker, "sandbox")], Err("\"sandbox\"; it is")),
            ("no id", vec![(cri, "container")], Err("io.kubernetes.cri.sandbox-id is missing")),
        ];
        for (name, annotations, expected) in cases {
            let annotations = annotations.into_iter();
            let annotations = annotations.map(|(key, value)| (key.into(), value.into())).collect();
            match (Kind::of(&annotations), expected) {
                (Ok(kind), Ok(expected)) => assert_eq!(kind, expected, "{name}"),
                (Err(error), Err(part)) => {
                    assert!(error.to_string().contains(part), "{name}: {error}");
                }
                (got, _) => panic!("{name}: {got:?}"),
            }
        }
    }
}
