"""boto3, as it comes, against the object store.

Usage: boto3_objects.py ENDPOINT ACCESS_KEY SECRET_KEY

Every check is an assertion; exit status 0 and a last line "ok" mean that all held. Needs boto3; where the minio package
is installed too, its client is tried as well.
"""

import hashlib
import io
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import ClientError
from botocore import UNSIGNED

MIB = 1024 * 1024


def client(endpoint, access, secret, **config):
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=access,
        aws_secret_access_key=secret,
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1}, **config),
    )


def refused(code, call, **arguments):
    try:
        call(**arguments)
    except ClientError as error:
        got = error.response["Error"]["Code"]
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        assert code in (got, str(status)), f"wanted {code}, got {got} ({status})"
        return error
    raise AssertionError(f"{call} was not refused; wanted {code}")


def buckets(s3, bucket):
    s3.create_bucket(Bucket=bucket)
    refused("BucketAlreadyOwnedByYou", s3.create_bucket, Bucket=bucket)
    refused("InvalidBucketName", s3.create_bucket, Bucket="Bad.Name.")
    s3.head_bucket(Bucket=bucket)
    refused("404", s3.head_bucket, Bucket="there-is-no-such-bucket")
    assert bucket in [b["Name"] for b in s3.list_buckets()["Buckets"]]
    assert s3.get_bucket_location(Bucket=bucket)["LocationConstraint"] is None
    for call in (s3.get_bucket_cors, s3.get_bucket_lifecycle_configuration, s3.get_bucket_policy):
        refused("NotImplemented", call, Bucket=bucket)


def single(s3, bucket):
    body = b"hello, object store" * 7
    key = "dir with space/ünï+code&?#.txt"
    put = s3.put_object(
        Bucket=bucket,
        Key=key,
        Body=body,
        ContentType="text/plain",
        CacheControl="no-cache",
        ContentDisposition='attachment; filename="x.txt"',
        Metadata={"owner": "ann", "step": "train"},
        Tagging="team=a&stage=b%20c",
    )
    assert put["ETag"] == f'"{hashlib.md5(body).hexdigest()}"', put["ETag"]
    got = s3.get_object(Bucket=bucket, Key=key)
    assert got["Body"].read() == body
    assert got["ContentType"] == "text/plain" and got["CacheControl"] == "no-cache"
    assert got["Metadata"] == {"owner": "ann", "step": "train"}
    assert got["TagCount"] == 2
    head = s3.head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
    assert head["ContentLength"] == len(body) and head["ChecksumCRC32"], head
    assert s3.get_object(Bucket=bucket, Key=key, Range="bytes=3-9")["Body"].read() == body[3:10]
    assert s3.get_object(Bucket=bucket, Key=key, Range="bytes=-5")["Body"].read() == body[-5:]
    ranged = s3.get_object(Bucket=bucket, Key=key, Range="bytes=100-")
    assert ranged["ContentRange"] == f"bytes 100-{len(body) - 1}/{len(body)}"
    assert ranged["ResponseMetadata"]["HTTPStatusCode"] == 206
    refused("InvalidRange", s3.get_object, Bucket=bucket, Key=key, Range="bytes=99999-")
    refused("NoSuchKey", s3.get_object, Bucket=bucket, Key="absent")
    refused("404", s3.head_object, Bucket=bucket, Key="absent")
    refused("NoSuchBucket", s3.get_object, Bucket="there-is-no-such-bucket", Key="absent")
    refused("BadDigest", s3.put_object, Bucket=bucket, Key="bad", Body=b"x", ContentMD5="1B2M2Y8AsgTpgAmY7PhCfg==")
    refused("404", s3.head_object, Bucket=bucket, Key="bad")
    tags = s3.get_object_tagging(Bucket=bucket, Key=key)["TagSet"]
    assert {t["Key"]: t["Value"] for t in tags} == {"team": "a", "stage": "b c"}
    s3.put_object_tagging(Bucket=bucket, Key=key, Tagging={"TagSet": [{"Key": "k", "Value": "v"}]})
    assert s3.get_object_tagging(Bucket=bucket, Key=key)["TagSet"] == [{"Key": "k", "Value": "v"}]
    s3.delete_object_tagging(Bucket=bucket, Key=key)
    assert s3.get_object_tagging(Bucket=bucket, Key=key)["TagSet"] == []
    s3.put_object(Bucket=bucket, Key="empty", Body=b"")
    assert s3.get_object(Bucket=bucket, Key="empty")["Body"].read() == b""
    attributes = s3.get_object_attributes(Bucket=bucket, Key=key, ObjectAttributes=["ETag", "ObjectSize", "Checksum"])
    assert attributes["ObjectSize"] == len(body) and attributes["Checksum"]["ChecksumCRC32"]
    refused("MetadataTooLarge", s3.put_object, Bucket=bucket, Key="fat", Body=b"", Metadata={"a": "b" * 3000})


def checksums(s3, bucket):
    for algorithm in ("CRC32", "CRC64NVME", "SHA1", "SHA256", "CRC32C"):
        try:
            put = s3.put_object(Bucket=bucket, Key=f"sum-{algorithm}", Body=b"123456789", ChecksumAlgorithm=algorithm)
        except Exception as error:  # noqa: BLE001: botocore without awscrt cannot compute some of them
            if type(error).__name__ in ("MissingDependencyException", "FlexibleChecksumError"):
                continue
            raise
        assert put[f"Checksum{algorithm}"]
        got = s3.get_object(Bucket=bucket, Key=f"sum-{algorithm}", ChecksumMode="ENABLED")
        assert got["Body"].read() == b"123456789" and got[f"Checksum{algorithm}"] == put[f"Checksum{algorithm}"]
    put = s3.put_object(Bucket=bucket, Key="sum-given", Body=b"123456789", ChecksumCRC64NVME="rosUhgp5mIg=")
    assert put["ChecksumCRC64NVME"] == "rosUhgp5mIg="
    refused("BadDigest", s3.put_object, Bucket=bucket, Key="x", Body=b"12345678", ChecksumCRC64NVME="rosUhgp5mIg=")


def conditions(s3, bucket):
    first = s3.put_object(Bucket=bucket, Key="cond", Body=b"1", IfNoneMatch="*")["ETag"]
    refused("PreconditionFailed", s3.put_object, Bucket=bucket, Key="cond", Body=b"2", IfNoneMatch="*")
    second = s3.put_object(Bucket=bucket, Key="cond", Body=b"2", IfMatch=first)["ETag"]
    refused("PreconditionFailed", s3.put_object, Bucket=bucket, Key="cond", Body=b"3", IfMatch=first)
    refused("NoSuchKey", s3.put_object, Bucket=bucket, Key="cond-absent", Body=b"3", IfMatch=first)
    refused("PreconditionFailed", s3.get_object, Bucket=bucket, Key="cond", IfMatch=first)
    refused("304", s3.get_object, Bucket=bucket, Key="cond", IfNoneMatch=second)
    assert s3.get_object(Bucket=bucket, Key="cond", IfMatch=second)["Body"].read() == b"2"
    modified = s3.head_object(Bucket=bucket, Key="cond")["LastModified"]
    refused("304", s3.get_object, Bucket=bucket, Key="cond", IfModifiedSince=modified)
    s3.get_object(Bucket=bucket, Key="cond", IfUnmodifiedSince=modified)


def copies(s3, bucket):
    s3.put_object(Bucket=bucket, Key="src/a b+c", Body=b"copy me", ContentType="text/x", Metadata={"m": "1"})
    s3.copy_object(Bucket=bucket, Key="dst", CopySource={"Bucket": bucket, "Key": "src/a b+c"})
    got = s3.get_object(Bucket=bucket, Key="dst")
    assert got["Body"].read() == b"copy me" and got["Metadata"] == {"m": "1"} and got["ContentType"] == "text/x"
    s3.copy_object(
        Bucket=bucket,
        Key="dst",
        CopySource={"Bucket": bucket, "Key": "dst"},
        MetadataDirective="REPLACE",
        Metadata={"m": "2"},
    )
    assert s3.head_object(Bucket=bucket, Key="dst")["Metadata"] == {"m": "2"}
    refused("InvalidArgument", s3.copy_object, Bucket=bucket, Key="dst", CopySource={"Bucket": bucket, "Key": "dst"})
    s3.delete_object(Bucket=bucket, Key="src/a b+c")
    assert s3.get_object(Bucket=bucket, Key="dst")["Body"].read() == b"copy me"


def listings(s3, bucket):
    keys = sorted([f"list/{d}/{n:03}" for d in "abc" for n in range(7)] + ["list/top 1+2", "list/ü"], key=str.encode)
    for key in keys:
        s3.put_object(Bucket=bucket, Key=key, Body=b"x")
    for name, token in (("list_objects_v2", "ContinuationToken"), ("list_objects", "Marker")):
        pages = s3.get_paginator(name).paginate(Bucket=bucket, Prefix="list/", PaginationConfig={"PageSize": 4})
        found = [o["Key"] for page in pages for o in page.get("Contents", [])]
        assert found == keys, (name, found)
        prefixes, found = [], []
        pages = s3.get_paginator(name).paginate(
            Bucket=bucket, Prefix="list/", Delimiter="/", PaginationConfig={"PageSize": 2}
        )
        for page in pages:
            prefixes += [p["Prefix"] for p in page.get("CommonPrefixes", [])]
            found += [o["Key"] for o in page.get("Contents", [])]
        assert prefixes == ["list/a/", "list/b/", "list/c/"] and found == ["list/top 1+2", "list/ü"], (name, prefixes, found)
    after = s3.list_objects_v2(Bucket=bucket, Prefix="list/", StartAfter="list/b/006", MaxKeys=2)
    assert [o["Key"] for o in after["Contents"]] == ["list/c/000", "list/c/001"] and after["IsTruncated"]
    assert s3.list_objects_v2(Bucket=bucket, Prefix="nothing/")["KeyCount"] == 0
    assert s3.list_objects_v2(Bucket=bucket, MaxKeys=0)["KeyCount"] == 0
    refused("InvalidArgument", s3.list_objects_v2, Bucket=bucket, ContinuationToken="' OR 1=1 --")
    done = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": k} for k in keys + ["absent", "../../etc"]]})
    assert len(done["Deleted"]) == len(keys) + 2 and "Errors" not in done
    assert s3.list_objects_v2(Bucket=bucket, Prefix="list/")["KeyCount"] == 0


def multipart(s3, bucket):
    data = bytes(range(256)) * (20 * MIB // 256) + b"tail"
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        s3.upload_file(file.name, bucket, "big", Config=TransferConfig(multipart_chunksize=8 * MIB))
    head = s3.head_object(Bucket=bucket, Key="big")
    assert head["ContentLength"] == len(data) and head["ETag"].endswith('-3"'), head
    sink = io.BytesIO()
    s3.download_fileobj(bucket, "big", sink)
    assert sink.getvalue() == data
    across = s3.get_object(Bucket=bucket, Key="big", Range=f"bytes={8 * MIB - 3}-{8 * MIB + 2}")["Body"].read()
    assert across == data[8 * MIB - 3 : 8 * MIB + 3]
    part = s3.get_object(Bucket=bucket, Key="big", PartNumber=3)
    assert part["Body"].read() == data[16 * MIB :] and part["PartsCount"] == 3
    s3.copy_object(Bucket=bucket, Key="big copy", CopySource={"Bucket": bucket, "Key": "big"})
    s3.delete_object(Bucket=bucket, Key="big")
    assert s3.get_object(Bucket=bucket, Key="big copy")["Body"].read() == data

    upload = s3.create_multipart_upload(Bucket=bucket, Key="mp", Metadata={"a": "b"}, ChecksumAlgorithm="CRC32")["UploadId"]
    one = s3.upload_part(Bucket=bucket, Key="mp", UploadId=upload, PartNumber=1, Body=b"a" * (5 * MIB))
    two = s3.upload_part_copy(
        Bucket=bucket,
        Key="mp",
        UploadId=upload,
        PartNumber=2,
        CopySource={"Bucket": bucket, "Key": "big copy"},
        CopySourceRange="bytes=10-19",
    )["CopyPartResult"]
    listed = s3.list_parts(Bucket=bucket, Key="mp", UploadId=upload)["Parts"]
    assert [(p["PartNumber"], p["Size"]) for p in listed] == [(1, 5 * MIB), (2, 10)]
    assert upload in [u["UploadId"] for u in s3.list_multipart_uploads(Bucket=bucket)["Uploads"]]
    parts = [{"PartNumber": 1, "ETag": one["ETag"]}, {"PartNumber": 2, "ETag": two["ETag"]}]
    ask = {"Bucket": bucket, "Key": "mp", "UploadId": upload}
    refused("InvalidPartOrder", s3.complete_multipart_upload, MultipartUpload={"Parts": parts[::-1]}, **ask)
    wrong = [{"PartNumber": 1, "ETag": two["ETag"]}]
    refused("InvalidPart", s3.complete_multipart_upload, MultipartUpload={"Parts": wrong}, **ask)
    done = s3.complete_multipart_upload(MultipartUpload={"Parts": parts}, **ask)
    want = hashlib.md5(hashlib.md5(b"a" * (5 * MIB)).digest() + hashlib.md5(data[10:20]).digest()).hexdigest()
    assert done["ETag"] == f'"{want}-2"', done["ETag"]
    got = s3.get_object(Bucket=bucket, Key="mp")
    assert got["Body"].read() == b"a" * (5 * MIB) + data[10:20] and got["Metadata"] == {"a": "b"}
    refused("NoSuchUpload", s3.upload_part, PartNumber=1, Body=b"x", **ask)

    upload = s3.create_multipart_upload(Bucket=bucket, Key="small")["UploadId"]
    ask = {"Bucket": bucket, "Key": "small", "UploadId": upload}
    etags = [s3.upload_part(PartNumber=n, Body=b"tiny", **ask)["ETag"] for n in (1, 2)]
    parts = [{"PartNumber": n + 1, "ETag": e} for n, e in enumerate(etags)]
    refused("EntityTooSmall", s3.complete_multipart_upload, MultipartUpload={"Parts": parts}, **ask)
    s3.abort_multipart_upload(**ask)
    refused("NoSuchUpload", s3.list_parts, **ask)


def versions(s3, bucket):
    s3.put_object(Bucket=bucket, Key="v", Body=b"0")
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    assert s3.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
    ids = [s3.put_object(Bucket=bucket, Key="v", Body=str(n).encode())["VersionId"] for n in (1, 2)]
    marker = s3.delete_object(Bucket=bucket, Key="v")
    assert marker["DeleteMarker"]
    refused("NoSuchKey", s3.get_object, Bucket=bucket, Key="v")
    refused("405", s3.get_object, Bucket=bucket, Key="v", VersionId=marker["VersionId"])
    assert s3.get_object(Bucket=bucket, Key="v", VersionId=ids[0])["Body"].read() == b"1"
    assert s3.get_object(Bucket=bucket, Key="v", VersionId="null")["Body"].read() == b"0"
    pages = s3.get_paginator("list_object_versions").paginate(
        Bucket=bucket, Prefix="v", PaginationConfig={"PageSize": 2}
    )
    found, marks = [], []
    for page in pages:
        found += [(v["VersionId"], v["IsLatest"]) for v in page.get("Versions", [])]
        marks += [(v["VersionId"], v["IsLatest"]) for v in page.get("DeleteMarkers", [])]
    assert found == [(ids[1], False), (ids[0], False), ("null", False)], found
    assert marks == [(marker["VersionId"], True)]
    s3.delete_object(Bucket=bucket, Key="v", VersionId=marker["VersionId"])
    assert s3.get_object(Bucket=bucket, Key="v")["Body"].read() == b"2"
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Suspended"})
    assert s3.put_object(Bucket=bucket, Key="v", Body=b"3")["VersionId"] == "null"
    assert s3.get_object(Bucket=bucket, Key="v", VersionId=ids[1])["Body"].read() == b"2"


def presigned(s3, bucket, endpoint, access, secret):
    def fetch(url, method="GET", data=None):
        with urllib.request.urlopen(urllib.request.Request(url, data=data, method=method)) as answer:
            return answer.read()

    def status(url, method="GET"):
        try:
            fetch(url, method)
        except urllib.error.HTTPError as error:
            return error.code
        return 200

    place = {"Bucket": bucket, "Key": "pre/signed ü"}
    # boto3 signs URLs for this region with version 2 unless told otherwise; both are to work.
    old_style = s3
    s3 = client(endpoint, access, secret, signature_version="s3v4")
    fetch(s3.generate_presigned_url("put_object", place, ExpiresIn=60), "PUT", b"by url")
    url = s3.generate_presigned_url("get_object", place, ExpiresIn=60)
    assert fetch(url) == b"by url" and "X-Amz-Signature" in url
    assert fetch(old_style.generate_presigned_url("get_object", place, ExpiresIn=60)) == b"by url"
    assert status(url[:-1] + ("0" if url[-1] != "0" else "1")) == 403
    assert status(url.replace("pre/", "prf/")) == 403
    assert status(url, "DELETE") == 403
    short = s3.generate_presigned_url("get_object", place, ExpiresIn=1)
    time.sleep(2.5)
    assert status(short) == 403
    assert status(f"{endpoint}/{bucket}/pre/signed%20%C3%BC") == 403


def strangers(s3, bucket, endpoint, access):
    anonymous = boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1", config=Config(signature_version=UNSIGNED)
    )
    refused("AccessDenied", anonymous.list_buckets)
    refused("AccessDenied", anonymous.get_object, Bucket=bucket, Key="cond")
    refused("AccessDenied", anonymous.put_object, Bucket=bucket, Key="cond", Body=b"x")
    refused("SignatureDoesNotMatch", client(endpoint, access, "wrong" * 8).list_buckets)
    refused("InvalidAccessKeyId", client(endpoint, "minio", "minio123").list_buckets)


def minio_client(endpoint, access, secret, bucket):
    try:
        from minio import Minio
    except ImportError:
        print("minio: not installed, left out")
        return
    mc = Minio(endpoint.split("://")[1], access, secret, secure=endpoint.startswith("https"))
    assert mc.bucket_exists(bucket) and not mc.bucket_exists("there-is-no-such-bucket")
    data = b"m" * (11 * MIB)
    mc.put_object(bucket, "minio/one two", io.BytesIO(b"small"), 5, metadata={"who": "me"})
    mc.put_object(bucket, "minio/big", io.BytesIO(data), len(data), part_size=5 * MIB)
    mc.put_object(bucket, "minio/unknown", io.BytesIO(data), -1, part_size=5 * MIB)
    answer = mc.get_object(bucket, "minio/big")
    assert answer.read() == data
    answer.close()
    assert mc.stat_object(bucket, "minio/one two").metadata["x-amz-meta-who"] == "me"
    assert [o.object_name for o in mc.list_objects(bucket, "minio/", recursive=True)] == [
        "minio/big",
        "minio/one two",
        "minio/unknown",
    ]
    assert [o.object_name for o in mc.list_objects(bucket, "min")] == ["minio/"]
    with urllib.request.urlopen(mc.presigned_get_object(bucket, "minio/one two")) as answer:
        assert answer.read() == b"small"
    for name in ("big", "one two", "unknown"):
        mc.remove_object(bucket, f"minio/{name}")


def clear(s3, bucket):
    for page in s3.get_paginator("list_object_versions").paginate(Bucket=bucket):
        gone = [{"Key": v["Key"], "VersionId": v["VersionId"]} for v in page.get("Versions", [])]
        gone += [{"Key": v["Key"], "VersionId": v["VersionId"]} for v in page.get("DeleteMarkers", [])]
        if gone:
            done = s3.delete_objects(Bucket=bucket, Delete={"Objects": gone})
            assert "Errors" not in done, done
    refused("NoSuchBucket", s3.delete_bucket, Bucket="there-is-no-such-bucket")
    s3.delete_bucket(Bucket=bucket)
    refused("404", s3.head_bucket, Bucket=bucket)


def main():
    endpoint, access, secret = sys.argv[1:4]
    s3 = client(endpoint, access, secret)
    bucket = f"boto3-{uuid.uuid4().hex[:12]}"
    for name, check in {
        "buckets": lambda: buckets(s3, bucket),
        "objects": lambda: single(s3, bucket),
        "checksums": lambda: checksums(s3, bucket),
        "conditions": lambda: conditions(s3, bucket),
        "copies": lambda: copies(s3, bucket),
        "listings": lambda: listings(s3, bucket),
        "multipart": lambda: multipart(s3, bucket),
        "presigned": lambda: presigned(s3, bucket, endpoint, access, secret),
        "strangers": lambda: strangers(s3, bucket, endpoint, access),
        "minio client": lambda: minio_client(endpoint, access, secret, bucket),
        "not empty": lambda: refused("BucketNotEmpty", s3.delete_bucket, Bucket=bucket),
        "versions": lambda: versions(s3, bucket),
        "clear": lambda: clear(s3, bucket),
    }.items():
        check()
        print(f"{name}: held")
    print("ok")


if __name__ == "__main__":
    main()
