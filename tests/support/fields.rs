//! A message as a flat list of its fields.

use std::collections::BTreeMap;

use protobuf::MessageDyn;
use protobuf::reflect::{ReflectValueBox, ReflectValueRef, RuntimeFieldType, RuntimeType};

/// The fields of `message` by their paths, such as `memory.usage.limit` and `hugetlb.0.max`, those
/// with 0 and no text too; of an absent part there are none.
pub fn fields(message: &dyn MessageDyn) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    add("", message, &mut all);
    all
}

fn add(prefix: &str, message: &dyn MessageDyn, all: &mut BTreeMap<String, String>) {
    for field in message.descriptor_dyn().fields() {
        let name = format!("{prefix}{}", field.name());
        match field.runtime_field_type() {
            RuntimeFieldType::Singular(RuntimeType::Message(_)) => {
                if let Some(value) = field.get_singular(message) {
                    add_value(name, value, all);
                }
            }
            RuntimeFieldType::Singular(_) => {
                add_value(name, field.get_singular_field_or_default(message), all);
            }
            RuntimeFieldType::Repeated(_) => {
                for (index, value) in field.get_repeated(message).into_iter().enumerate() {
                    add_value(format!("{name}.{index}"), value, all);
                }
            }
            RuntimeFieldType::Map(..) => panic!("{name} is a map"),
        }
    }
}

fn add_value(name: String, value: ReflectValueRef<'_>, all: &mut BTreeMap<String, String>) {
    match value.to_box() {
        ReflectValueBox::Message(part) => add(&format!("{name}."), &*part, all),
        ReflectValueBox::String(text) => drop(all.insert(name, text)),
        ReflectValueBox::U64(number) => drop(all.insert(name, number.to_string())),
        ReflectValueBox::U32(number) => drop(all.insert(name, number.to_string())),
        ReflectValueBox::F64(number) => drop(all.insert(name, number.to_string())),
        other => panic!("{name} is {other:?}"),
    }
}
