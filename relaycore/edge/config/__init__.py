"""What the edge programs are told: values, the files they come from, secrets kept outside of them, other tools' files.
The room knows paths and texts. It must not dial, listen, or hold state."""
