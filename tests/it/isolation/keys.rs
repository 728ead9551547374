//! The S3 keys that each profile's namespace has in a Secret: they open its own bucket and nobody else's.

use super::{Person, word};
use kfbox_tests::{Python, TestBox, run, wait_until};
use serde_json::{Value, json};
use std::{process::Command, time::Duration};

/// The Secret's data, in base64, as soon as it is there; the bucket is there before it.
pub fn secret(b: &TestBox, namespace: &str) -> anyhow::Result<Value> {
    wait_until(Duration::from_secs(30), "the Secret with S3 keys", || {
        let get = ["get", "secret", "mlpipeline-minio-artifact", "-n", namespace, "-o", "jsonpath={.data}"];
        let found = b.kubectl(&[&get[..], &["--ignore-not-found"]].concat())?.ok()?.stdout;
        Ok(serde_json::from_str(&found).ok())
    })
}

/// Writes to and reads from its own bucket, then tries another's.
const SCRIPT: &str = "
import base64, boto3, json, sys
c = json.loads(sys.argv[1])
key = lambda name: base64.b64decode(c['secret'][name]).decode()
s3 = boto3.client('s3', endpoint_url=c['endpoint'], region_name='us-east-1',
                  aws_access_key_id=key('accesskey'), aws_secret_access_key=key('secretkey'))
s3.put_object(Bucket=c['own'], Key='model', Body=b'weights')
assert s3.get_object(Bucket=c['own'], Key='model')['Body'].read() == b'weights'
assert c['other'] not in [b['Name'] for b in s3.list_buckets()['Buckets']]
def refused(call, **arguments):
    try:
        call(**arguments)
    except s3.exceptions.ClientError as error:
        assert error.response['ResponseMetadata']['HTTPStatusCode'] == 403, error
        return
    raise AssertionError(arguments)
refused(s3.list_objects_v2, Bucket=c['other'])
refused(s3.get_object, Bucket=c['other'], Key='model')
refused(s3.put_object, Bucket=c['other'], Key='model', Body=b'x')
refused(s3.put_object, Bucket='mlpipeline', Key='v2/artifacts/' + c['other'] + '/x', Body=b'x')
";

#[test]
fn a_namespaces_keys_open_its_own_bucket_alone() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    let (ann, bob) = (Person::new(&b, &word("ann"))?, Person::new(&b, &word("bob"))?);
    let (anns, bobs) = (secret(&b, &ann.namespace)?, secret(&b, &bob.namespace)?);
    assert_ne!(anns["accesskey"], bobs["accesskey"]);
    for (secret, own, other) in [(&anns, &ann, &bob), (&bobs, &bob, &ann)] {
        let given = json!({"secret": secret, "own": own.namespace, "other": other.namespace,
            "endpoint": format!("http://{}", b.address("objects")?)});
        run(Command::new(Python::Clients.program()).args(["-c", SCRIPT, &given.to_string()]))?.ok()?;
    }
    b.kubectl(&["delete", "secret", "mlpipeline-minio-artifact", "-n", &ann.namespace])?.ok()?;
    assert_eq!(secret(&b, &ann.namespace)?, anns, "it comes back");
    Ok(())
}
