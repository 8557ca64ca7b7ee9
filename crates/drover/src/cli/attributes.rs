//! What `drover host set` takes: `rack=r1 labels=oracle,ssd disk=2T`.

use super::{Failure, values};
use serde_json::{Map, Value, json};

/// The merge patch of these changes; a key without a value takes back what was said.
pub fn patch(changes: &[(String, String)]) -> Result<Value, Failure> {
    let mut patch = Map::new();
    for (key, text) in changes {
        let (field, value) = field(key, text).map_err(|why| Failure::Usage(format!("{key}: {why}")))?;
        if patch.insert(field.to_owned(), value).is_some() {
            return Err(Failure::Usage(format!("{key} is given twice")));
        }
    }
    Ok(Value::Object(patch))
}

fn field(key: &str, text: &str) -> Result<(&'static str, Value), String> {
    type Read = fn(&str) -> Result<Value, String>;
    let (field, read): (_, Read) = match key {
        "rack" => ("rack", |text| Ok(json!(text))),
        "zone" => ("zone", |text| Ok(json!(text))),
        "labels" => ("labels", |text| Ok(json!(text.split(',').collect::<Vec<_>>()))),
        "disk" => ("disk_mib", |text| values::memory_mib(text).map(Value::from)),
        "link" => ("link_bytes_s", |text| values::bytes(text).map(Value::from)),
        "power-curve" => ("power_curve_watts", power_curve),
        "power-cycle-price" => ("power_cycle_price_micro", |text| {
            let price = text.parse::<i64>();
            price.map(Value::from).map_err(|_| format!("{text:?} is no price: write millionths, e.g. 3000"))
        }),
        _ => return Err("is none of rack, zone, labels, disk, link, power-curve, power-cycle-price".to_owned()),
    };
    Ok((field, if text.is_empty() { Value::Null } else { read(text)? }))
}

fn power_curve(text: &str) -> Result<Value, String> {
    let wrong = || format!("{text:?} is no power curve: write eleven watts, at 0, 10, ... 100 % of the processor");
    let watts: Vec<f64> = text.split(',').map(|watts| watts.parse().map_err(|_| wrong())).collect::<Result<_, _>>()?;
    if watts.len() == 11 && watts.iter().all(|watts| watts.is_finite()) { Ok(json!(watts)) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(changes: &[(&str, &str)]) -> Result<Value, Failure> {
        patch(&changes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<Vec<_>>())
    }

    #[test]
    fn what_is_typed_becomes_a_merge_patch() {
        let curve = "86,89,92,96,99,102,106,108,112,114,117";
        let changes = [("rack", "r1"), ("labels", "oracle,ssd"), ("disk", "2T"), ("zone", ""), ("power-curve", curve)];
        let patch = typed(&changes).unwrap();
        assert_eq!((&patch["rack"], &patch["labels"]), (&json!("r1"), &json!(["oracle", "ssd"])));
        assert_eq!((&patch["disk_mib"], &patch["zone"]), (&json!(2 << 20), &Value::Null));
        assert_eq!(patch["power_curve_watts"].as_array().unwrap().len(), 11);
        for bad in
            [("rak", "r1"), ("disk", "2P"), ("power-curve", "1,2,3"), ("power-cycle-price", "0.5"), ("link", "x")]
        {
            assert!(typed(&[bad]).is_err(), "{bad:?}");
        }
        assert!(typed(&[("rack", "r1"), ("rack", "r2")]).is_err());
    }
}
