package launcher;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.net.Socket;
import java.net.SocketTimeoutException;
import java.nio.charset.StandardCharsets;
import java.util.concurrent.TimeUnit;

/** Reads commands from a client that may be silent, slow or send without end. */
final class LimitedReader {
    private static final int MAX_BYTES = 4096;
    private static final long PATIENCE_NANOS = TimeUnit.SECONDS.toNanos(5);

    private final Socket socket;
    private final InputStream input;

    LimitedReader(Socket socket) throws IOException {
        this.socket = socket;
        this.input = socket.getInputStream();
    }

    /** Reads until the client closes the connection. */
    String readAll() throws IOException {
        return read(-1, System.nanoTime() + PATIENCE_NANOS);
    }

    /** Reads a first line, which must arrive before the time-out; null at the end. */
    String readFirstLine() throws IOException {
        return read('\n', System.nanoTime() + PATIENCE_NANOS);
    }

    /** Reads a line from an authenticated client, without a time-out; null at the end. */
    String readLine() throws IOException {
        return read('\n', 0);
    }

    private String read(int end, long deadline) throws IOException {
        ByteArrayOutputStream text = new ByteArrayOutputStream();
        while (text.size() <= MAX_BYTES) {
            socket.setSoTimeout(deadline == 0 ? 0 : remainingMillis(deadline));
            int next = input.read();
            if (next == end) {
                return text.toString(StandardCharsets.UTF_8);
            }
            if (next < 0) {
                return null;
            }
            text.write(next);
        }
        throw new IOException("more than " + MAX_BYTES + " bytes");
    }

    private static int remainingMillis(long deadline) throws SocketTimeoutException {
        long millis = TimeUnit.NANOSECONDS.toMillis(deadline - System.nanoTime());
        if (millis <= 0) {
            throw new SocketTimeoutException("too slow");
        }
        return (int) millis;
    }
}
