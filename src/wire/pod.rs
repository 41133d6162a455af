//! CRI's `PodSandboxConfig`, as far as a sandbox needs it ([api.proto]).
//!
//! [api.proto]: https://github.com/kubernetes/cri-api/blob/master/pkg/apis/runtime/v1/api.proto

use protobuf::well_known_types::any::Any;

use crate::error::{Error, Result};
use crate::sandbox::pod::{Dns, Maps, Pod, Range, Share};
use crate::sandbox::sizing::Limits;
use crate::wire::options::{Value, read};

/// The type that containerd's CRI plugin sends with CreateSandbox.
const TYPE: &str = "runtime.v1.PodSandboxConfig";

/// Reads a pod's configuration; `None` if there is none.
///
/// # Errors
/// [`Error::Invalid`] that quotes the type URL: the type is not known, or the value is not of it; as
/// [`Pod::check`].
pub(crate) fn decode(any: &Any) -> Result<Option<Pod>> {
    let url = any.type_url.as_str();
    if url.is_empty() && any.value.is_empty() {
        return Ok(None);
    }
    if url.strip_prefix("type.googleapis.com/").unwrap_or(url) != TYPE {
        return Err(Error::Invalid(format!("sandbox options of type {url:?} are not known")));
    }
    let mut pod = Pod::default();
    config(&any.value, &mut pod).map_err(|error| {
        Error::Invalid(format!("sandbox options are not a message of type {url:?}: {error}"))
    })?;
    pod.check()?;
    Ok(Some(pod))
}

fn config(message: &[u8], pod: &mut Pod) -> protobuf::Result<()> {
    read(message, |number, value| {
        match number {
            2 => pod.hostname = value.text()?,
            4 => pod.dns = Some(dns(&value.bytes())?),
            8 => linux(&value.bytes(), pod)?,
            _ => {}
        }
        Ok(())
    })
}

fn dns(message: &[u8]) -> protobuf::Result<Dns> {
    let mut dns = Dns::default();
    read(message, |number, value| {
        match number {
            1 => dns.servers.push(value.text()?),
            2 => dns.searches.push(value.text()?),
            3 => dns.options.push(value.text()?),
            _ => {}
        }
        Ok(())
    })?;
    Ok(dns)
}

/// `LinuxPodSandboxConfig`
fn linux(message: &[u8], pod: &mut Pod) -> protobuf::Result<()> {
    read(message, |number, value| {
        match number {
            1 => pod.cgroup_parent = value.text()?,
            // LinuxSandboxSecurityContext and in it, as 1 too, NamespaceOption
            2 => read(&value.bytes(), |number, value| match number {
                1 => namespaces(&value.bytes(), pod),
                _ => Ok(()),
            })?,
            3 => {
                let (mut name, mut setting) = (String::new(), String::new());
                read(&value.bytes(), |number, value| {
                    match number {
                        1 => name = value.text()?,
                        2 => setting = value.text()?,
                        _ => {}
                    }
                    Ok(())
                })?;
                pod.sysctls.insert(name, setting);
            }
            5 => pod.limits = limits(&value.bytes())?,
            _ => {}
        }
        Ok(())
    })
}

/// `LinuxContainerResources`, here of the pod; a negative number of what cannot be is none.
fn limits(message: &[u8]) -> protobuf::Result<Limits> {
    let mut limits = Limits::default();
    read(message, |number, value| {
        let value = value.signed();
        match number {
            1 => limits.period = u64::try_from(value).unwrap_or(0),
            2 => limits.quota = value,
            3 => limits.shares = u64::try_from(value).unwrap_or(0),
            4 => limits.memory = value,
            _ => {}
        }
        Ok(())
    })?;
    Ok(limits)
}

fn namespaces(message: &[u8], pod: &mut Pod) -> protobuf::Result<()> {
    read(message, |number, value| {
        match number {
            1 => pod.network = share(&value),
            2 => pod.pid = share(&value),
            3 => pod.ipc = share(&value),
            5 => pod.user = user(&value.bytes())?,
            _ => {}
        }
        Ok(())
    })
}

/// `NamespaceMode`: a container that is a target has its namespace in no sandbox either.
fn share(value: &Value) -> Share {
    match value.number() {
        0 => Share::Pod,
        2 => Share::Host,
        _ => Share::Container,
    }
}

/// `UserNamespace`; `None` for the host's.
fn user(message: &[u8]) -> protobuf::Result<Option<Maps>> {
    let (mut mode, mut maps) = (Share::Pod, Maps::default());
    read(message, |number, value| {
        match number {
            1 => mode = share(&value),
            2 => maps.uids.push(range(&value.bytes())?),
            3 => maps.gids.push(range(&value.bytes())?),
            _ => {}
        }
        Ok(())
    })?;
    Ok((mode == Share::Pod).then_some(maps))
}

/// `IDMapping`
fn range(message: &[u8]) -> protobuf::Result<Range> {
    let mut range = Range::default();
    read(message, |number, value| {
        match number {
            1 => range.outside = value.number(),
            2 => range.inside = value.number(),
            3 => range.length = value.number(),
            _ => {}
        }
        Ok(())
    })?;
    Ok(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A field of a message: a number, a text, or a message in it.
    enum Field {
        Number(u32, u64),
        Text(u32, &'static str),
        Message(u32, Vec<Field>),
    }
    use Field::{Message, Number, Text};

    fn encode(fields: &[Field]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut out = protobuf::CodedOutputStream::vec(&mut bytes);
        for field in fields {
            match field {
                Number(number, value) => out.write_uint64(*number, *value).unwrap(),
                Text(number, value) => out.write_string(*number, value).unwrap(),
                Message(number, fields) => out.write_bytes(*number, &encode(fields)).unwrap(),
            }
        }
        out.flush().unwrap();
        drop(out);
        bytes
    }

    fn any(url: &str, value: Vec<u8>) -> Any {
        Any { type_url: url.into(), value, ..Any::default() }
    }

    #[test]
    fn a_pods_configuration_is_read() {
        let ids = |outside| vec![Number(1, outside), Number(3, 65536)];
        let user = |mode| vec![Number(1, mode), Message(2, ids(7)), Message(3, ids(8))];
        let namespaces = |fields| vec![Message(8, vec![Message(2, vec![Message(1, fields)])])];
        let resources = |fields| vec![Message(8, vec![Message(5, fields)])];
        let range = |outside| vec![Range { inside: 0, outside, length: 65536 }];
        let words = |word: &str| vec![word.to_owned()];
        let none = Pod::default();
        let cases = [
            ("empty", vec![], none.clone()),
            (
                "names",
                vec![
                    Message(1, vec![Text(1, "pod")]),
                    Text(2, "h"),
                    Message(4, vec![Text(1, "s"), Text(2, "d"), Text(3, "o")]),
                ],
                Pod {
                    hostname: "h".into(),
                    dns: Some(Dns {
                        servers: words("s"),
                        searches: words("d"),
                        options: words("o"),
                    }),
                    ..none.clone()
                },
            ),
            ("no DNS at all", vec![Message(4, vec![])], {
                Pod { dns: Some(Dns::default()), ..none.clone() }
            }),
            (
                "linux",
                vec![Message(8, vec![Text(1, "/p"), Message(3, vec![Text(1, "a"), Text(2, "b")])])],
                Pod {
                    cgroup_parent: "/p".into(),
                    sysctls: [("a".to_owned(), "b".to_owned())].into(),
                    ..none.clone()
                },
            ),
            (
                "namespaces",
                namespaces(vec![Number(1, 2), Number(2, 1), Number(3, 2), Text(4, "target")]),
                Pod {
                    network: Share::Host,
                    pid: Share::Container,
                    ipc: Share::Host,
                    ..none.clone()
                },
            ),
            ("a target", namespaces(vec![Number(2, 3)]), {
                Pod { pid: Share::Container, ..none.clone() }
            }),
            ("a user namespace", namespaces(vec![Message(5, user(0))]), {
                Pod { user: Some(Maps { uids: range(7), gids: range(8) }), ..none.clone() }
            }),
            ("the host's users", namespaces(vec![Message(5, user(2))]), none.clone()),
            (
                "limits",
                resources(vec![Number(1, 100), Number(2, 250), Number(3, 2048), Number(4, 7)]),
                {
                    let limits = Limits { period: 100, quota: 250, shares: 2048, memory: 7 };
                    Pod { limits, ..none.clone() }
                },
            ),
            (
                "no limit",
                resources(vec![Number(1, u64::MAX), Number(2, u64::MAX), Number(5, 1)]),
                { Pod { limits: Limits { quota: -1, ..Limits::default() }, ..none } },
            ),
        ];
        for (name, fields, expected) in cases {
            let found = decode(&any(TYPE, encode(&fields))).unwrap();
            assert_eq!(found, Some(expected), "{name}");
        }
        assert_eq!(decode(&any("", vec![])).unwrap(), None);
        assert!(decode(&any("type.googleapis.com/runtime.v1.PodSandboxConfig", vec![])).is_ok());
    }

    #[test]
    fn another_type_and_a_broken_message_are_refused() {
        let cases = [
            ("unknown", "example.v1.Pod", vec![]),
            ("no type", "", vec![8, 1]),
            ("cut short", TYPE, vec![0x12, 5, b'a']),
            ("cut short inside", TYPE, vec![0x42, 2, 0x0a, 9]),
        ];
        for (name, url, value) in cases {
            let error = decode(&any(url, value)).unwrap_err();
            assert!(error.to_string().contains(&format!("{url:?}")), "{name}: {error}");
        }
    }
}
