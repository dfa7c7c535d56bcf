# SPDX-License-Identifier: Apache-2.0
"""Options of image encryption, which is not available yet (`qapi/crypto.json`)."""

from __future__ import annotations

from enum import Enum

from vhostblk.schema.base import UNSET, QapiStruct, UnsetType


class QCryptoCipherAlgo(Enum):
    """Ciphers."""

    AES_128 = "aes-128"
    AES_192 = "aes-192"
    AES_256 = "aes-256"
    DES = "des"
    TRIPLE_DES = "3des"
    CAST5_128 = "cast5-128"
    SERPENT_128 = "serpent-128"
    SERPENT_192 = "serpent-192"
    SERPENT_256 = "serpent-256"
    TWOFISH_128 = "twofish-128"
    TWOFISH_192 = "twofish-192"
    TWOFISH_256 = "twofish-256"
    SM4 = "sm4"


class QCryptoCipherMode(Enum):
    """Modes of ciphers."""

    ECB = "ecb"
    CBC = "cbc"
    XTS = "xts"
    CTR = "ctr"


class QCryptoIVGenAlgo(Enum):
    """Generators of initialization vectors."""

    PLAIN = "plain"
    PLAIN64 = "plain64"
    ESSIV = "essiv"


class QCryptoHashAlgo(Enum):
    """Hash functions."""

    MD5 = "md5"
    SHA1 = "sha1"
    SHA224 = "sha224"
    SHA256 = "sha256"
    SHA384 = "sha384"
    SHA512 = "sha512"
    RIPEMD160 = "ripemd160"
    SM3 = "sm3"


class QCryptoBlockOptionsQCow(
    QapiStruct, tag_field="format", tag="qcow", kw_only=True, frozen=True
):
    """The old AES-CBC encryption."""

    key_secret: str | UnsetType = UNSET


class QCryptoBlockCreateOptionsLUKS(
    QapiStruct, tag_field="format", tag="luks", kw_only=True, frozen=True
):
    """LUKS."""

    key_secret: str | UnsetType = UNSET
    cipher_alg: QCryptoCipherAlgo | UnsetType = UNSET
    cipher_mode: QCryptoCipherMode | UnsetType = UNSET
    ivgen_alg: QCryptoIVGenAlgo | UnsetType = UNSET
    ivgen_hash_alg: QCryptoHashAlgo | UnsetType = UNSET
    hash_alg: QCryptoHashAlgo | UnsetType = UNSET
    iter_time: int | UnsetType = UNSET


QCryptoBlockCreateOptions = QCryptoBlockOptionsQCow | QCryptoBlockCreateOptionsLUKS


class QCryptoBlockLUKSKeyslotState(Enum):
    """The wanted state of a key slot."""

    ACTIVE = "active"
    INACTIVE = "inactive"


class QCryptoBlockAmendOptionsQCow(
    QapiStruct, tag_field="format", tag="qcow", kw_only=True, frozen=True
):
    """The old AES-CBC encryption, of which nothing can be changed."""


class QCryptoBlockAmendOptionsLUKS(
    QapiStruct, tag_field="format", tag="luks", kw_only=True, frozen=True
):
    """A key slot of LUKS."""

    state: QCryptoBlockLUKSKeyslotState
    new_secret: str | UnsetType = UNSET
    old_secret: str | UnsetType = UNSET
    keyslot: int | UnsetType = UNSET
    iter_time: int | UnsetType = UNSET
    secret: str | UnsetType = UNSET


QCryptoBlockAmendOptions = QCryptoBlockAmendOptionsQCow | QCryptoBlockAmendOptionsLUKS
