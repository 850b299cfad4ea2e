"""What the stage `sample` is made of: what a video starts from, how several are made, and how they become files."""
