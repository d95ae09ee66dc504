import { PutObjectCommand, type PutObjectCommandInput } from "@aws-sdk/client-s3";
import { getSignedUrl } from "@aws-sdk/s3-request-presigner";
import { TributaryError } from "../base/errors.js";
import type { PresignedPut, PutContent } from "./object-store.js";
import type { S3Connection } from "./s3-connection.js";

const CHECKSUM = "x-amz-checksum-sha256";
const IF_ABSENT = "if-none-match";
/** As headers they are signed as they are; moved into the URL, where the signer would have them, servers pass over some. */
const AS_HEADERS = new Set([CHECKSUM, IF_ABSENT, "content-length"]);

/**
 * A URL for one put of exactly these bytes to a key where nothing is: length, checksum and condition are part of what is
 * signed, so that the server refuses whatever else is sent. Makes no request. Errors: TRB-STORE-FAILED.
 */
export async function presignPut(
  s3: S3Connection,
  key: string,
  { bytes, sha256 }: PutContent,
  lifeMs: number,
): Promise<PresignedPut> {
  const put: PutObjectCommandInput = {
    ...s3.at(key),
    ...s3.encryption(),
    ContentLength: bytes,
    ChecksumSHA256: sha256.toString("base64"),
    IfNoneMatch: "*",
  };
  try {
    const url = await getSignedUrl(s3.client, new PutObjectCommand(put), {
      expiresIn: Math.floor(lifeMs / 1000),
      signableHeaders: AS_HEADERS,
      unhoistableHeaders: AS_HEADERS,
    });
    const { ServerSideEncryption, SSEKMSKeyId } = put;
    return {
      url,
      headers: {
        [CHECKSUM]: put.ChecksumSHA256!,
        [IF_ABSENT]: "*",
        ...(ServerSideEncryption === undefined
          ? {}
          : { "x-amz-server-side-encryption": ServerSideEncryption }),
        ...(SSEKMSKeyId === undefined
          ? {}
          : {
              "x-amz-server-side-encryption-aws-kms-key-id": SSEKMSKeyId,
              "x-amz-server-side-encryption-bucket-key-enabled": "true",
            }),
      },
    };
  } catch (cause) {
    throw new TributaryError("TRB-STORE-FAILED", "presign: no credentials", { cause });
  }
}
