"""What the pipeline runs on: a local stack without Docker (`infra.local`), and the same for Docker (`compose.yaml`)."""
