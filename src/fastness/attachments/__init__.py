"""Where the bytes of attachments are kept, and the face that a session has of them."""
