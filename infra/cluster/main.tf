# The bucket on Amazon's S3, and a role for each service account that uses it: pods have no keys.
#
#   tofu -chdir=infra/cluster init && tofu -chdir=infra/cluster apply

terraform {
  required_version = ">= 1.6"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 6.0"
    }
  }
}

variable "bucket" {
  type        = string
  description = "Its name, of which there is one in the world."
}

variable "prefix" {
  type        = string
  default     = "m2m"
  description = "M2M_STORE is s3://BUCKET/PREFIX."

  validation {
    condition     = can(regex("^[\\w-]+(/[\\w-]+)*$", var.prefix))
    error_message = "A path without a slash at its ends: the rights end where it does."
  }
}

variable "artifacts_prefix" {
  type        = string
  default     = "mlflow"
  description = "Where MLflow's server keeps artifacts."
}

variable "oidc_provider_arn" {
  type        = string
  description = "The Kubernetes cluster's OpenID Connect provider in IAM, by which Amazon knows its service accounts."
}

variable "namespace" {
  type    = string
  default = "m2m"
}

variable "checkpoint_days" {
  type        = number
  default     = 30
  description = "Days a checkpoint is kept: a training run that rests for longer begins anew."
}

locals {
  issuer = replace(var.oidc_provider_arn, "/^.*:oidc-provider\\//", "")
  parts = {
    store  = { prefix = var.prefix, accounts = ["m2m", "m2m-head"] }
    mlflow = { prefix = var.artifacts_prefix, accounts = ["mlflow"] }
  }
}

resource "aws_s3_bucket" "store" {
  bucket = var.bucket
}

resource "aws_s3_bucket_public_access_block" "store" {
  bucket                  = aws_s3_bucket.store.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_server_side_encryption_configuration" "store" {
  bucket = aws_s3_bucket.store.id

  rule {
    # Amazon's own key: one in KMS would be a request, and a right, more for each object.
    apply_server_side_encryption_by_default {
      sse_algorithm = "AES256"
    }
  }
}

resource "aws_s3_bucket_lifecycle_configuration" "store" {
  bucket = aws_s3_bucket.store.id

  rule {
    id     = "unfinished-uploads"
    status = "Enabled"
    filter {}

    # Of nodes that were lost while they sent; nothing lists them, everything is paid for.
    abort_incomplete_multipart_upload {
      days_after_initiation = 3
    }
  }

  rule {
    id     = "checkpoints"
    status = "Enabled"

    filter {
      prefix = "${var.prefix}/checkpoints/"
    }

    expiration {
      days = var.checkpoint_days
    }
  }
}

data "aws_iam_policy_document" "tls" {
  statement {
    effect    = "Deny"
    actions   = ["s3:*"]
    resources = [aws_s3_bucket.store.arn, "${aws_s3_bucket.store.arn}/*"]

    principals {
      type        = "*"
      identifiers = ["*"]
    }

    condition {
      test     = "Bool"
      variable = "aws:SecureTransport"
      values   = ["false"]
    }
  }
}

resource "aws_s3_bucket_policy" "store" {
  bucket = aws_s3_bucket.store.id
  policy = data.aws_iam_policy_document.tls.json
}

# What m2m/store/s3.py asks for, and nothing else; MLflow's server asks for the same below its own prefix.
data "aws_iam_policy_document" "use" {
  for_each = local.parts

  statement {
    actions = [
      "s3:AbortMultipartUpload",
      "s3:DeleteObject",
      "s3:GetObject",
      "s3:PutObject",
    ]
    resources = ["${aws_s3_bucket.store.arn}/${each.value.prefix}/*"]
  }

  statement {
    # Who may not list is told 403, not 404, of an object that is not there: Amazon takes its key for the prefix then.
    actions   = ["s3:ListBucket"]
    resources = [aws_s3_bucket.store.arn]

    condition {
      test     = "StringLike"
      variable = "s3:prefix"
      values   = ["${each.value.prefix}/*"]
    }
  }
}

data "aws_iam_policy_document" "trust" {
  for_each = local.parts

  statement {
    actions = ["sts:AssumeRoleWithWebIdentity"]

    principals {
      type        = "Federated"
      identifiers = [var.oidc_provider_arn]
    }

    condition {
      test     = "StringEquals"
      variable = "${local.issuer}:aud"
      values   = ["sts.amazonaws.com"]
    }

    condition {
      test     = "StringEquals"
      variable = "${local.issuer}:sub"
      values   = [for account in each.value.accounts : "system:serviceaccount:${var.namespace}:${account}"]
    }
  }
}

resource "aws_iam_role" "pods" {
  for_each           = local.parts
  name               = "${var.namespace}-${each.key}"
  assume_role_policy = data.aws_iam_policy_document.trust[each.key].json
}

resource "aws_iam_role_policy" "pods" {
  for_each = local.parts
  name     = "bucket"
  role     = aws_iam_role.pods[each.key].id
  policy   = data.aws_iam_policy_document.use[each.key].json
}

output "roles" {
  description = "For the annotations of the service accounts in namespace.yaml."
  value       = { for part, role in aws_iam_role.pods : part => role.arn }
}
